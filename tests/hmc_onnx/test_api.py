"""The Python interface: what is public, how results show themselves, and what images may come as."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from passes.core.records import Frozen

SMALL = hmc_onnx.Settings(samples=16, kl_samples=8, chunk=8, positions=8, provider="cpu", threads=1)
WORK = hmc_onnx.Work(jobs=1)


@pytest.fixture(scope="module")
def original() -> onnx.ModelProto:
    return resnet((1,), (8,), size=8)


@pytest.fixture(scope="module")
def result(original: onnx.ModelProto) -> hmc_onnx.Result:
    return hmc_onnx.compress(original, {"input": images(16, 8)}, "macs=0.6", settings=SMALL, work=WORK)


def test_int8_in_steps_is_as_in_one_go_and_is_verified_beside_the_quantiser_alone(original: onnx.ModelProto) -> None:
    calibration, settings = {"input": images(16, 8)}, SMALL.model_copy(update={"precision": "int8"})
    whole = hmc_onnx.compress(original, calibration, "macs=0.6", settings=settings, work=WORK)
    plan = hmc_onnx.solve(hmc_onnx.profile(original, calibration, settings, WORK), "macs=0.6")
    served = hmc_onnx.apply(original, plan, calibration, WORK)
    assert served == whole.model
    alone = hmc_onnx.compress(original, calibration, "none", settings=settings, work=WORK).model
    found = hmc_onnx.verify(original, alone, CalibrationData(calibration, None, ""), SMALL.runtime, precision="int8")
    assert found.unchanged is not None
    assert (found.unchanged.precision, found.unchanged.agreement) == ("int8", found.agreement)
    assert hmc_onnx.verify(original, alone, CalibrationData(calibration, None, ""), SMALL.runtime).unchanged is None
    with pytest.raises(hmc_onnx.ModelError, match="the model is quantised"):
        hmc_onnx.verify(alone, original, CalibrationData(calibration, None, ""), SMALL.runtime, precision="int8")


def test_every_public_name_is_there_once() -> None:
    assert len(set(hmc_onnx.__all__)) == len(hmc_onnx.__all__)
    assert all(hasattr(hmc_onnx, name) for name in hmc_onnx.__all__)
    assert set(hmc_onnx.__all__) <= set(dir(hmc_onnx))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hmc_onnx.nothing  # noqa: B018


def mentioned(annotation: object) -> Iterator[type]:
    """The classes within a type, ours only."""
    if isinstance(annotation, type) and annotation.__module__.split(".")[0] in ("hmc_onnx", "calib", "passes"):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from mentioned(inner)


def test_all_that_public_signatures_need_is_public() -> None:
    public = {id(getattr(hmc_onnx, name)) for name in hmc_onnx.__all__}
    own = [getattr(hmc_onnx, name) for name in hmc_onnx.__all__]
    functions = [f for f in own if inspect.isfunction(f)] + [hmc_onnx.finetune.finetune, hmc_onnx.handoff.handoff]
    functions += [f for n, f in inspect.getmembers(hmc_onnx.Run, inspect.isfunction) if not n.startswith("_")]
    assert len(functions) > 15
    known = {name: getattr(hmc_onnx, name) for name in hmc_onnx.__all__}
    for function in map(inspect.unwrap, functions):
        for annotation in typing.get_type_hints(function, {**function.__globals__, **known}).values():
            missing = [kind.__name__ for kind in mentioned(annotation) if id(kind) not in public]
            assert not missing, (function.__qualname__, missing)


def test_the_fields_of_public_records_are_of_public_types() -> None:
    own = [getattr(hmc_onnx, name) for name in hmc_onnx.__all__]
    records = [kind for kind in own if isinstance(kind, type)]
    looked_at = 0
    for kind in records:
        for name, annotation in typing.get_type_hints(kind).items():
            if not name.startswith("_"):
                looked_at += 1
                missing = [inner.__name__ for inner in mentioned(annotation) if inner not in records]
                assert not missing, (kind.__name__, name, missing)
    assert looked_at > 200


def test_no_public_function_takes_more_than_six_arguments() -> None:
    functions = [getattr(hmc_onnx, n) for n in hmc_onnx.__all__]
    own = [f for f in functions if inspect.isfunction(f) or inspect.ismodule(f)]  # the packages that can be called, too
    counts = {f.__name__: len(inspect.signature(f).parameters) for f in own}
    assert {"hmc_onnx.finetune", "hmc_onnx.handoff"} < counts.keys() and max(counts.values()) <= 6


def test_a_result_shows_a_summary_and_no_weights(result: hmc_onnx.Result) -> None:
    assert str(result) == repr(result)
    assert "MACs" in str(result) and len(str(result)) < 4000
    assert "<pre" in result._repr_html_() and "MACs" in result._repr_html_()


def test_records_are_printed_and_shown_in_notebooks_as_they_explain_themselves(result: hmc_onnx.Result) -> None:
    for record, says in ((result.plan, "strategy hmc"), (result.profile, "multiples of"), (result.report, "MACs: ")):
        assert record is not None and str(record) == record.explain() and says in str(record)
        assert record._repr_html_().startswith("<pre>") and says in record._repr_html_()


@pytest.mark.parametrize(("name", "begins"), [("run.html", "<!doctype html>"), ("run.json", "{")])
def test_a_result_writes_its_report_by_the_files_name(
    result: hmc_onnx.Result, tmp_path: Path, name: str, begins: str
) -> None:
    result.save_report(tmp_path / name)
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written.lower().startswith(begins)
    assert all(layer in written for layer in result.plan.layers)


@pytest.mark.parametrize("what", ["plan", "profile"])
def test_records_are_saved_loaded_and_explained(result: hmc_onnx.Result, what: str, tmp_path: typing.Any) -> None:
    record: Frozen = getattr(result, what)
    record.save(tmp_path / "record.json")
    assert type(record).load(tmp_path / "record.json") == record  # type: ignore[attr-defined]
    explained = record.explain()  # type: ignore[attr-defined]
    assert all(layer in explained for layer in result.plan.layers)


class Reader:
    """As onnxruntime.quantization asks for them."""

    def __init__(self, x: np.ndarray) -> None:
        self._batches = iter(np.split(x, 4))

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        x = next(self._batches, None)
        return None if x is None else {"input": x}


def test_images_come_as_arrays_batches_readers_and_torch_loaders(original: onnx.ModelProto) -> None:
    import torch

    x = images(16, 8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(x), torch.arange(16)), 4)
    given = [CalibrationData({"input": x}, None, "noise"), np.split(x, 4), Reader(x), loader]
    profiles = [hmc_onnx.profile(original, data, SMALL, WORK) for data in given]
    layers = [profile.layers for profile in profiles]
    assert all(own == layers[0] for own in layers)


def test_a_target_may_be_text(result: hmc_onnx.Result) -> None:
    assert hmc_onnx.solve(result.profile, "macs=0.6") == hmc_onnx.solve(result.profile, hmc_onnx.Target(macs=0.6))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, d: hmc_onnx.compress(m, d, 0.5), r"goal 0\.5 is of type float: say what it bounds"),
        (lambda m, d: hmc_onnx.compress(None, d, "macs=0.5"), "model None is of type NoneType: give an onnx.ModelP"),
        (lambda m, d: hmc_onnx.compress(m, d, "macs=0.5", settings={"seed": 4}), "`settings` .* is of type dict"),
        (lambda m, d: hmc_onnx.profile(m, d, 0.5), r"`settings` 0\.5 is of type float: give hmc_onnx\.Settings"),
        (lambda m, d: hmc_onnx.Run("m.onnx", d), r"model 'm\.onnx' is of type str: read it with hmc_onnx\.load"),
        (lambda m, d: hmc_onnx.load_data("m", "d", hmc_onnx.preprocessing(), samples=4), "read it with hmc_onnx.load"),
        (lambda m, d: hmc_onnx.load_data(m, "d", "imagenet", samples=4), "`preprocess` 'imagenet' is of type str"),
        (lambda m, d: hmc_onnx.parse_target(0.5), r"target 0\.5 is of type float"),
        (lambda m, d: hmc_onnx.Goal(target=0.5), r"target 0\.5 is of type float"),
        (lambda m, d: hmc_onnx.solve(3, "macs=0.5"), r"the profile 3 is of type int: give hmc_onnx\.Profile\.load"),
        (
            lambda m, d: hmc_onnx.apply(m, "plan.json", d),
            r"plan 'plan\.json' is of type str: give hmc_onnx\.Plan\.load",
        ),
        (lambda m, d: hmc_onnx.Run(m, d).apply(None), r"plan None is of type NoneType: give hmc_onnx\.Plan\.load"),
        (lambda m, d: hmc_onnx.Run(m, d).verify(None), r"model None is of type NoneType: read it with hmc_onnx\.load"),
        (lambda m, d: hmc_onnx.Run(m, d).plan("macs=0.5", "best"), "unknown strategy 'best': use hmc, nahc, ahc"),
        (lambda m, d: hmc_onnx.Run(m, d, purpose="fun"), "unknown purpose 'fun': use nothing, report, search"),
        (lambda m, d: hmc_onnx.profile(m, d, work="w"), r"`work` 'w' is of type str: give hmc_onnx\.Work"),
        (lambda m, d: hmc_onnx.verify(m, m, d, "cpu"), r"`runtime` 'cpu' is of type str: give hmc_onnx\.Runtime"),
        (lambda m, d: hmc_onnx.load_data(m, "d", hmc_onnx.Images(), samples="4"), "`samples` '4' is of type str"),
        (lambda m, d: hmc_onnx.from_reader([d], "5"), "`samples` '5' is of type str"),
        (
            lambda m, d: hmc_onnx.Run(m, hmc_onnx.CalibrationDataReader),
            "is the class CalibrationDataReader: give an ob",
        ),
        (lambda m, d: hmc_onnx.CalibrationData(d["input"], None, "m"), "`feeds` .* is of type ndarray: give a dict"),
        (lambda m, d: hmc_onnx.CalibrationData({"input": [1]}, None, "m"), "a value of `feeds` .* is of type list"),
        (lambda m, d: hmc_onnx.CalibrationData(d, [1] * 8, "m"), "`labels` .* is of type list: give a numpy array"),
        (lambda m, d: hmc_onnx.Run(m, [{}]), "batch 0 of .* is empty: give an array for each input"),
        (lambda m, d: hmc_onnx.Plan.load(None), "the plan None is of type NoneType: give the path of a JSON file"),
        (lambda m, d: hmc_onnx.load(None), "the path None is of type NoneType: give the path of an ONNX file"),
        (lambda m, d: hmc_onnx.save("m", "m.onnx"), r"the model 'm' is of type str: give an onnx\.ModelProto"),
    ],
)
def test_a_value_of_a_wrong_type_is_said_in_one_sentence(call: Callable[..., object], says: str) -> None:
    with pytest.raises(hmc_onnx.HmcError, match=says):
        call(resnet((1,), (4,), size=8), {"input": images(8, 8)})
