"""What several stages need of a model is worked out once, and a run goes to another precision as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from zoo import Builder, images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.runtime.sessions import Session
from hmc_onnx.planning.program import Program
from hmc_onnx.records.plan import HeldBack
from hmc_onnx.records.provenance import with_provenance
from passes.core.errors import ModelError
from passes.graph.cost import activation_bytes
from passes.graph.protos import byte_size
from passes.graph.signature import same_signature
from passes.normal_form.normalise import normalise

SETTINGS = hmc_onnx.Settings(samples=16, kl_samples=8, chunk=8, positions=8, provider="cpu", threads=1)
WORK = hmc_onnx.Work(jobs=1)


def data(count: int = 16) -> CalibrationData:
    return CalibrationData({"input": images(count, 8)}, None, "noise")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often some work was done."""
    found: Counter[str] = Counter()

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            found[name] += 1
            return work(*arguments, **named)

        return call

    from calib.data import calibration
    from hmc_onnx.comparison import verification
    from hmc_onnx.execution import context

    for module in (context, verification):
        monkeypatch.setattr(module, "normalise", counted("normalise", module.normalise))
    monkeypatch.setattr(context, "find_compressible", counted("layers found", context.find_compressible))
    monkeypatch.setattr(calibration, "hash_contents", counted("hash", calibration.hash_contents))
    monkeypatch.setattr(calibration, "check_finite", counted("looked for NaN", calibration.check_finite))
    monkeypatch.setattr(
        onnx.shape_inference, "infer_shapes", counted("infer_shapes", onnx.shape_inference.infer_shapes)
    )
    monkeypatch.setattr(Program, "__init__", counted("program", Program.__init__))
    return found


def test_each_thing_is_worked_out_once(calls: Counter[str]) -> None:
    hmc_onnx.compress(resnet((1,), (8,), size=8), data(), "macs=0.6", settings=SETTINGS, work=WORK)
    assert calls["normalise"] == 2  # the original, and the file that came out
    assert calls["layers found"] == 1
    assert calls["hash"] == 1
    assert calls["looked for NaN"] == 1
    assert calls["program"] == 2  # what shapes allow, and what was measured
    assert calls["infer_shapes"] <= MOST_INFERENCES


# Of the original (in its normal form and in the file's own), of the pruned network, of the one that came out.
MOST_INFERENCES = 8


def test_plans_for_several_targets_share_a_profile_and_a_program(calls: Counter[str]) -> None:
    run = hmc_onnx.Run(resnet((1,), (8,), size=8), data(), SETTINGS, WORK)
    plans = [run.plan(f"macs={share}") for share in (0.9, 0.7, 0.5)]
    assert plans[0].macs > plans[1].macs > plans[2].macs
    assert calls["normalise"] == calls["hash"] == 1
    assert calls["program"] == 2


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_run_for_another_precision_gives_a_file_in_it(precision: str) -> None:
    original = resnet((1, 1), (8, 16), size=16, classes=5)
    settings = SETTINGS.model_copy(update={"precision": precision})
    x = CalibrationData({"input": images(32, 16)}, None, "noise")
    result = hmc_onnx.compress(original, x, "macs=0.8", settings=settings, work=WORK)
    same_signature(original, result.model)
    kinds = {t.data_type for t in result.model.graph.initializer if len(t.dims) == 4}
    assert kinds == {{"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}[precision]}
    assert result.report.unchanged is not None and result.report.unchanged.precision == precision
    assert len(result.report.unchanged.timings) == len(result.report.timings)
    assert result.report.b.macs == result.plan.macs
    assert f"{precision} alone" in str(result)


def test_a_precision_that_cannot_be_made_is_refused_before_any_work() -> None:
    half = resnet((1,), (8,), size=8)
    for tensor in half.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name))
    with pytest.raises(ModelError, match="weights are float16 already"):
        hmc_onnx.Run(half, data(), SETTINGS.model_copy(update={"precision": "int8"}), WORK)


def test_without_another_precision_plans_say_nothing_of_it() -> None:
    assert "precision" not in SETTINGS.model_dump_json()
    assert "int8" in SETTINGS.model_copy(update={"precision": "int8"}).model_dump_json()


def test_the_target_none_changes_the_precision_alone(calls: Counter[str]) -> None:
    original = resnet((1,), (8,), size=16, classes=5)
    x = CalibrationData({"input": images(16, 16)}, None, "noise")
    result = hmc_onnx.compress(original, x, "none", settings=SETTINGS.model_copy(update={"precision": "int8"}))
    assert result.profile is None and calls["program"] == 0
    assert result.plan.macs == result.report.a.macs == result.report.b.macs
    assert result.report.unchanged is not None
    assert byte_size(with_provenance(result.model, None)) == result.report.unchanged.bytes  # what the quantiser gives


def test_a_run_tells_what_looks_wrong_before_the_work() -> None:
    original = resnet((1,), (8,), size=8, classes=5)
    labelled = CalibrationData({"input": images(128, 8)}, np.zeros(128, int), "noise")
    assert "one_label" in {finding.code for finding in hmc_onnx.Run(original, labelled, SETTINGS, WORK).findings()}
    fine = hmc_onnx.Run(original, CalibrationData({"input": images(128, 8)}, None, "noise"), SETTINGS, WORK)
    assert not [finding for finding in fine.findings() if finding.fatal]
    assert "mixed_batch" not in {finding.code for finding in fine.findings()}


def test_extreme_images_are_found_wherever_they_are_and_a_raised_opset_is_said() -> None:
    old = resnet((1,), (8,), size=8, classes=5)
    old.opset_import[0].version = 11
    settings, x = SETTINGS.model_copy(update={"precision": "int8"}), images(500, 8)

    def found(purpose: HeldBack = "report") -> dict[str, str]:
        run = hmc_onnx.Run(old, CalibrationData({"input": x}, None, "noise"), settings, WORK, purpose)
        return {finding.code: finding.sentence for finding in run.findings()}

    assert "the model is of opset 11, and INT8 needs 13" in found()["opset_raised"]
    assert "values_apart" not in found()
    x[3, 0, 0, 0] = 3e30  # among the images to calibrate with, which are 16
    assert "the first of them image 3," in found("nothing")["values_apart"]
    x[3, 0, 0, 0], x[400:, 0, 0, 0] = 0, 3e30  # among those that are held back, which are drawn
    assert "hold values up to 3e+30" in found()["values_apart"]


def less_their_mean(share: float) -> onnx.ModelProto:
    """A classifier whose scores are taken from a share of their mean over the batch."""
    b = Builder()
    y = b.gemm(b.node("Flatten", b.node("GlobalAveragePool", b.conv("input", 3, 8))), 8, 5)
    mean = b.node("Mul", b.mean(y, (0,)), b.const(np.float32(share)))
    return b.model({b.node("Sub", y, mean): ["N", 5]})


def test_answers_that_depend_on_the_batch_are_said_before_the_work() -> None:
    data = CalibrationData({"input": images(128, 8)}, None, "noise")
    found = hmc_onnx.Run(less_their_mean(0.5), data, SETTINGS, WORK).findings()
    (mixed,) = [finding for finding in found if finding.code == "mixed_batch"]
    assert "it is measured one image a run" in mixed.sentence
    with pytest.raises(ModelError, match=r"the same for all images \(at one image a run\)"):
        hmc_onnx.Run(less_their_mean(1.0), data, SETTINGS, WORK).findings()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_model_of_a_fixed_batch_is_served_in_another_precision(precision: str) -> None:
    proto = resnet((1,), (4,), size=8)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    run = hmc_onnx.Run(proto, data(), SETTINGS.model_copy(update={"precision": precision}), WORK)
    feeds = {"input": images(1, 8)}
    before, after = (Session(model).run(feeds)[0] for model in (proto, run.served_alone))
    np.testing.assert_allclose(after, before, atol=0.1 * np.abs(before).max())


def test_ranges_are_found_on_as_few_images_at_once_as_memory_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def spied(proto: onnx.ModelProto, batches: list[dict[str, np.ndarray]], *more: object) -> onnx.ModelProto:
        seen.append([len(feeds["input"]) for feeds in batches])
        return proto

    monkeypatch.setattr("hmc_onnx.execution.context.quantise", spied)
    settings = SETTINGS.model_copy(update={"precision": "int8"})
    proto = resnet((1, 1), (4, 8), size=8)
    image = activation_bytes(normalise(proto), {"input": (1, 3, 8, 8)})
    for memory in (1.0, 11 * image / 1e9, 1e-9):  # of which three tenths are for ranges
        hmc_onnx.Run(proto, data(), settings, WORK.model_copy(update={"memory": memory})).served_alone  # noqa: B018
    assert seen == [[8, 8], [2] * 8, [1] * 16]
