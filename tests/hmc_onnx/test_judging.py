"""By which outputs models are compared, and which of them labels are held against."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from rich.console import Console
from zoo import Builder, images

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.runtime.sessions import Session
from hmc_onnx.analysis.inspection import inspect
from hmc_onnx.comparison import verification
from hmc_onnx.comparison.judging import check_decides, check_labels
from hmc_onnx.comparison.verification import Network, verify
from hmc_onnx.execution.executor import _BACKENDS
from hmc_onnx.records.comparison import Verification
from hmc_onnx.records.settings import Settings
from hmc_onnx.reporting.summary import as_text
from hmc_onnx.reporting.tables import comparison
from passes.core.errors import DataError, ModelError, SettingsError
from passes.graph.model import Model


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, quick_decompositions: None) -> None:
    """In this process, without the time that timing takes, and without the decompositions that take long."""
    monkeypatch.setitem(_BACKENDS, "processes", contextlib.nullcontext)
    monkeypatch.setattr(verification, "_timed", lambda *_: {})


def trunk(b: Builder) -> str:
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    x = b.node("Relu", b.conv(x, 8, 16, at="second"))
    return b.node("Flatten", b.node("GlobalAveragePool", x))


def heads(*widths: int, names: Sequence[str] = ()) -> onnx.ModelProto:
    """A network with several heads of a Gemm each."""
    b = Builder()
    x = trunk(b)
    made = [b.gemm(x, 16, width, at=f"head{i}") for i, width in enumerate(widths)]
    for name, output in zip(names, made, strict=False):
        b.nodes = [_renamed(n, output, name) for n in b.nodes]
    return b.model([*names, *made[len(names) :]])


def _renamed(node: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    node.output[:] = [new if o == old else o for o in node.output]
    return node


def data(labels: np.ndarray | None = None, count: int = 32) -> CalibrationData:
    return CalibrationData({"input": images(count, 8)}, labels, "noise")


def moved(proto: onnx.ModelProto, amount: float = 0.2, seed: int = 1) -> onnx.ModelProto:
    """The model with other weights in its last layers."""
    rng = np.random.default_rng(seed)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    for tensor in other.graph.initializer:
        if tensor.name.startswith("head") and tensor.name.endswith(".weight"):
            values = onnx.numpy_helper.to_array(tensor)
            values = (values + amount * values.std() * rng.normal(size=values.shape)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return other


def words(report: Verification) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison(report))
    return " ".join(console.export_text().split())


def compared(a: onnx.ModelProto, b: onnx.ModelProto, on: CalibrationData, *outputs: str) -> Verification:
    return verify(Network(a, outputs=outputs), Network(b), on)


def test_labels_are_held_against_the_output_that_they_fit() -> None:
    proto = heads(32, 10)
    session = Session(proto)
    labels = session.run({"input": images(32, 8)})[1].argmax(1)
    labels[0] = 9  # so that all classes are there
    for names in ((), ("embedding", "logits")):
        own = heads(32, 10, names=names)
        report = compared(own, own, data(labels))
        assert report.a.top1 == report.b.top1 > 0.9
        assert report.agreement == 1
        assert (report.cosine == pytest.approx(1)) if names else (report.cosine is None)
    with pytest.raises(DataError, match="the model has 10 classes"):
        check_labels(heads(32, 10, names=("embedding", "logits")), data(np.arange(32)))


def test_an_embedding_has_a_cosine_and_no_class() -> None:
    proto = heads(32, names=("embedding",))
    report = compared(proto, moved(proto), data(np.arange(32)))
    assert (report.a.top1, report.agreement, report.error) == (None, None, None)
    a, b = (Session(m).run({"input": images(32, 8)})[0] for m in (proto, moved(proto)))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert report.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    assert "same class" not in words(report) and "cosine of embeddings" in words(report)


def test_a_regression_has_an_error_over_its_standard_deviation() -> None:
    proto = heads(3)
    name = proto.graph.output[0].name
    report = compared(proto, moved(proto), data(), f"{name}=regression")
    a, b = (Session(m).run({"input": images(32, 8)})[0] for m in (proto, moved(proto)))
    assert report.error == pytest.approx(np.sqrt(((a - b) ** 2).mean() / a.var()), rel=1e-4)
    assert report.agreement is None and "same class" not in words(report)
    assert [(o.kind, o.name) for o in report.outputs] == [("regression", name)]


def test_one_column_is_a_decision() -> None:
    proto = heads(1)
    a, b = (Session(m).run({"input": images(32, 8)})[0][:, 0] for m in (proto, moved(proto, 3.0)))
    report = compared(proto, moved(proto, 3.0), data((a > 0).astype(np.int64)))
    same = ((a > 0) == (b > 0)).mean()
    assert (report.a.top1, report.b.top1, report.agreement) == (1, same, same)
    assert report.kl > 0
    with pytest.raises(DataError, match="the model has 2 classes"):
        check_labels(proto, data(np.arange(32)))


def test_a_bound_on_the_loss_needs_classes() -> None:
    check_decides(heads(1))
    proto = heads(32, names=("embedding",))
    with pytest.raises(SettingsError, match=r"an embedding.*give a `target`"):
        check_decides(proto)
    check_decides(proto, ["embedding=scores"])


def test_each_output_is_named_with_what_it_is_compared_by() -> None:
    b = Builder()
    logits = b.gemm(trunk(b), 16, 5)
    names = [logits, b.node("Cast", logits, to=TensorProto.INT64), b.node("SplitToSequence", logits, axis=1)]
    proto = b.model(names)
    report = compared(proto, proto, data())
    assert [(o.kind, o.judged_by) for o in report.outputs] == [
        ("scores", "KL divergence over the classes"),
        ("other", "not compared"),
        ("other", "not compared"),
    ]
    for name in names:
        assert name in words(report)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(inspect(proto))
    shown = console.export_text()
    assert "class scores" in shown
    assert "not compared" in shown


def fixed_to(batch: int, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a batch size written into it, unsaid."""
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    flat = next(n for n in other.graph.node if n.op_type == "Flatten")
    other.graph.initializer.append(onnx.numpy_helper.from_array(np.array([batch, 16]), "shape"))
    flat.op_type = "Reshape"
    flat.input.append("shape")
    return other


@pytest.mark.parametrize("batch", [1, 32])
def test_a_model_that_runs_at_one_batch_size_alone_is_found(batch: int) -> None:
    proto = heads(5)
    with pytest.raises(ModelError, match=r"the compressed model does not run on [0-9]+ images at once") as error:
        compared(proto, fixed_to(batch, proto), data())
    assert len(str(error.value).splitlines()) == 1


def test_outputs_are_compared_at_several_batch_sizes() -> None:
    proto = heads(5)
    report = compared(proto, moved(proto), data())
    assert [at.batch for at in report.batches] == [1, 3]
    assert all(at.kl > 0 for at in report.batches)
    assert [at.same for at in report.batches] == pytest.approx([at.kl for at in report.batches], rel=1e-3)
    shown = as_text(comparison(report.model_copy(update={"kl": 0.0})))
    assert "images at once" not in shown  # as the same images fare alike
    assert all(at.kl == 0 for at in compared(proto, proto, data()).batches)
    alone = fixed_to(1, proto)
    assert compared(alone, alone, data()).batches == []  # the original takes one image at a time


def through_a_sequence(b: Builder) -> str:
    x = b.node("Relu", b.conv("input", 3, 8, at="before"))
    x = b.node("ConcatFromSequence", b.node("SplitToSequence", x, b.const([4, 4]), axis=1), axis=1)
    x = b.node("Relu", b.conv(x, 8, 16, at="behind"))
    return b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 16, 5)


OUTPUTS = {
    "scores behind a sequence": through_a_sequence,
    "several labels": lambda b: b.node("Sigmoid", b.gemm(trunk(b), 16, 5)),
    "one column": lambda b: b.gemm(trunk(b), 16, 1),
    "one value, without its axis": lambda b: b.node("Squeeze", b.gemm(trunk(b), 16, 1), b.const([1])),
    "one number of all images": lambda b: b.node("ReduceMean", b.gemm(trunk(b), 16, 1), keepdims=0),
    "a map": lambda b: b.conv(b.conv("input", 3, 8), 8, 4),
    "probabilities of pixels": lambda b: b.node("Softmax", b.conv(b.conv("input", 3, 8), 8, 4), axis=1),
    "steps before images": lambda b: b.node(
        "Transpose", b.node("ReduceMean", b.conv(b.conv("input", 3, 8), 8, 4), axes=[2], keepdims=0), perm=[2, 0, 1]
    ),
    "crops in the batch": lambda b: b.node("Reshape", b.conv(b.conv("input", 3, 8), 8, 4), b.const([-1, 4, 4, 4])),
    "rows that vary": lambda b: b.node(
        "Compress",
        (x := b.gemm(trunk(b), 16, 4)),
        b.node("Greater", b.mean(x, (1,)), b.const(np.float32(0))),
        axis=0,
    ),
    "a sequence": lambda b: b.node("SplitToSequence", b.gemm(trunk(b), 16, 4), axis=1),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside class scores"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_any_output_works_or_ends_in_one_sentence(name: str, beside: bool) -> None:
    b = Builder()
    outputs = [OUTPUTS[name](b)]
    if beside:
        outputs.append(b.gemm(trunk(b), 16, 5, at="classes"))
    proto = b.model(outputs)
    settings = Settings(align=1, samples=32, kl_samples=16)

    def compress() -> hmc_onnx.Result:
        return hmc_onnx.compress(proto, data(), "macs=0.8", settings=settings)

    if name in ("rows that vary", "a sequence") and not beside:
        with pytest.raises(ModelError, match="no output that can be compared") as error:
            compress()
        assert len(str(error.value).splitlines()) == 1
        return
    result = compress()
    assert 0 < result.report.kl < 1
    assert result.report.b.macs <= 0.8 * result.report.a.macs
    shown = {o.name for o in result.report.outputs}
    assert shown == set(outputs)
    assert len(Model(result.model).outputs) == len(outputs)


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name not in ("rows that vary", "a sequence")])
def test_a_target_of_everything_changes_nothing(name: str) -> None:
    b = Builder()
    proto = b.model(OUTPUTS[name](b))
    result = hmc_onnx.compress(proto, data(), "macs=1.0", settings=Settings(align=1, samples=32, kl_samples=16))
    x = images(24, 8, seed=5)
    for own, theirs in zip(Session(result.model).run({"input": x}), Session(proto).run({"input": x}), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_what_is_said_of_an_output_is_in_the_settings_and_only_then_in_their_json() -> None:
    assert "outputs" not in Settings().model_dump_json()
    said = Settings(judge=("x=map",))
    assert Settings.model_validate_json(said.model_dump_json()) == said
    with pytest.raises(SettingsError, match="write NAME=kind"):
        Settings(judge=("x",))
    proto, x = heads(5), data()
    with pytest.raises(SettingsError, match="no output of that name"):
        hmc_onnx.compress(proto, x, "macs=0.5", settings=Settings(judge=("nobody=map",)))
