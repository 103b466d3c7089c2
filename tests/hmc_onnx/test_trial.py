"""Trials: what a plan's network loses once it is repaired, on images that it was not repaired on."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.program import Program
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.planning.trial import MOST_TRIALS, Trial, loses_less, most_trials
from hmc_onnx.profiling.profiler import profile
from hmc_onnx.records.goal import Target

SETTINGS = hmc_onnx.Settings(samples=160, kl_samples=16, positions=8, align=4, provider="cpu", threads=1)


@pytest.fixture(scope="module")
def context() -> Context:
    data = CalibrationData({"input": images(200, 8)}, np.arange(200) % 5, "noise")
    return Context(resnet((1, 1), (8, 16), size=8, classes=5), data, SETTINGS)


def test_more_change_loses_more_and_none_loses_nothing(context: Context) -> None:
    trial, program = Trial(context), Program(profile(context))
    mild, strong = (trial.losses(program.solve(Target(macs=share))) for share in (0.9, 0.4))
    none = trial.losses(unchanged(context))
    assert mild.shape == strong.shape == (40,)
    assert none == pytest.approx(0, abs=1e-9)
    assert loses_less(none, mild) and loses_less(mild, strong) and not loses_less(strong, mild)


def of_a_trial(trial: Trial) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The images that it judges on, and those that it repairs on."""
    judged, fitted = (
        [image for chunk in own.images for image in chunk["input"]] for own in (trial._judged, trial._fitted)
    )
    return judged, fitted


def test_a_trial_is_judged_on_other_images_than_it_is_repaired_on(context: Context) -> None:
    judged, fitted = ({image.tobytes() for image in own} for own in of_a_trial(Trial(context)))
    assert len(judged) == 40 and len(fitted) == 120
    assert not judged & fitted


@pytest.mark.parametrize(("count", "judged", "fitted"), [(200, 50, 150), (300, 108, 192), (600, 256, 192)])
def test_images_beyond_those_that_a_repair_takes_are_judged_on(
    context: Context, count: int, judged: int, fitted: int
) -> None:
    data = CalibrationData({"input": images(count, 8)}, None, "noise")
    trial = Trial(Context(context.served, data, SETTINGS.model_copy(update={"samples": count})))
    assert tuple(map(len, of_a_trial(trial))) == (judged, fitted)


@pytest.mark.parametrize(("given", "asked", "enough"), [(128, 128, True), (127, 128, False), (500, 127, False)])
def test_few_images_are_not_divided(given: int, asked: int, enough: bool) -> None:
    data = CalibrationData({"input": images(given, 8)}, None, "noise")
    settings = SETTINGS.model_copy(update={"samples": asked})
    most = most_trials(Context(resnet((1,), (8,), size=8, classes=5), data, settings))
    assert most == (MOST_TRIALS if enough else 0)


def test_large_networks_are_tried_less_often(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmc_onnx.planning.trial.TRIAL_MACS", 2.5 * context.cost.macs)
    assert most_trials(context) == 2


def test_the_judged_images_are_drawn(context: Context) -> None:
    sorted_by_class = CalibrationData({"input": np.sort(images(160, 8), axis=0)}, None, "noise")
    judged, _ = of_a_trial(Trial(Context(context.served, sorted_by_class, SETTINGS)))
    at = [np.abs(sorted_by_class.feeds["input"] - image).reshape(160, -1).max(1).argmin() for image in judged]
    assert min(at) < 20 and max(at) > 140


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_a_model_that_declares_its_batch_is_tried(batch: int) -> None:
    served = resnet((1,), (8,), size=8, classes=5)
    for value in (*served.graph.input, *served.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    context = Context(served, CalibrationData({"input": images(160, 8)}, None, "noise"), SETTINGS)
    assert most_trials(context)
    assert Trial(context).losses(unchanged(context)).shape == (40 // batch * batch,)


@pytest.mark.parametrize(
    ("batch", "count", "tried"), [(64, 160, False), (192, 600, True), (200, 600, False), (300, 600, False)]
)
def test_a_batch_larger_than_the_judged_or_the_fitted_images_is_not_tried(batch: int, count: int, tried: bool) -> None:
    served = resnet((1,), (8,), size=8, classes=5)
    served.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    data, settings = CalibrationData({"input": images(count, 8)}, None, "noise"), SETTINGS
    context = Context(served, data, settings.model_copy(update={"samples": count}))
    assert bool(most_trials(context)) == tried


def test_a_difference_within_its_error_does_not_count() -> None:
    noise = np.random.default_rng(0).standard_normal(100)
    assert not loses_less(np.zeros(100), noise - noise.mean() + 0.05)
    assert loses_less(np.zeros(100), noise - noise.mean() + 0.2)
    assert not loses_less(np.zeros(100), np.zeros(100))
