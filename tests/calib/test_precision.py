"""Models in INT8 and float16: what comes out runs, keeps its signature, and is near the original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from zoo import images, resnet

from calib.runtime.half import in_half, overflowing
from calib.runtime.quantisation import quantise, quantise_for_timing, raise_opset
from calib.runtime.sessions import Session
from passes.core.errors import ModelError
from passes.graph.protos import check
from passes.graph.signature import same_signature
from passes.normal_form.normalise import normalise


@pytest.fixture(scope="module")
def original() -> onnx.ModelProto:
    return normalise(raise_opset(resnet((1, 1), (8, 16), size=16, classes=5))).finished()


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    return [{"input": part} for part in np.split(images(32, 16), 4)]


def scores(proto: onnx.ModelProto) -> np.ndarray:
    return Session(proto).run({"input": images(16, 16, seed=1)})[0]


def share_of_variance(proto: onnx.ModelProto, original: onnx.ModelProto) -> float:
    ours, theirs = scores(proto), scores(original)
    return float(((ours - theirs) ** 2).mean() / theirs.var())


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_a_quantised_model_stands_in_for_the_original(
    original: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], calibration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quantised = quantise(original, feeds, calibration)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")  # where a command may write JSON
    same_signature(original, quantised)
    check(quantised)
    convs = [n for n in quantised.graph.node if n.op_type == "Conv"]
    made_by = {n.output[0]: n.op_type for n in quantised.graph.node}
    assert convs and all(made_by[name] == "DequantizeLinear" for n in convs for name in n.input[:2])
    scales = {t.name: t for t in quantised.graph.initializer}
    weight = next(n for n in quantised.graph.node if n.output[0] == convs[0].input[1])
    assert scales[weight.input[1]].dims[0] == 8  # one scale a channel
    assert share_of_variance(quantised, original) < 0.05


def test_ranges_are_those_of_all_images_however_they_are_divided(original: onnx.ModelProto) -> None:
    own = images(24, 16)
    own[-1] *= 3  # so that its ranges are those that count
    whole, *others = (quantise(original, [{"input": part} for part in np.split(own, n)]) for n in (1, 2, 3, 4))
    assert all(other.graph.initializer == whole.graph.initializer for other in others)


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_histograms_are_made_of_feeds_of_one_size(original: onnx.ModelProto, calibration: str) -> None:
    feeds = [{"input": part} for part in np.split(images(30, 16), [8, 16, 24])]
    assert quantise(original, feeds, calibration) == quantise(original, feeds[:3], calibration)  # type: ignore[arg-type]


def test_a_range_that_is_too_large_is_refused(original: onnx.ModelProto) -> None:
    own = images(8, 16)
    own[0] = 3e38
    with (
        pytest.raises(ModelError, match="on the calibration images is too large or too small for INT8"),
        pytest.warns(RuntimeWarning, match="All-NaN"),
    ):
        quantise(original, [{"input": own}])


def test_what_is_left_in_float_is(original: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> None:
    convs = [n.name for n in original.graph.node if n.op_type == "Conv"]
    quantised = quantise(original, feeds, in_float=[convs[0]])
    weights = {n.name: n.input[1] for n in quantised.graph.node if n.op_type == "Conv"}
    floats = {t.name for t in quantised.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert [name for name, weight in weights.items() if weight in floats] == [convs[0]]


def test_gpu_providers_get_symmetric_int8_and_float_biases(
    original: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    quantised = quantise(original, feeds, provider="TensorrtExecutionProvider")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in quantised.graph.initializer}
    points = [values[n.input[2]] for n in quantised.graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 2]
    assert points and all(p.dtype == np.int8 and not p.any() for p in points)
    biases = [n.input[2] for n in quantised.graph.node if n.op_type == "Conv" and len(n.input) > 2]
    assert biases and all(values[b].dtype == np.float32 for b in biases)


def test_a_model_to_be_timed_has_the_nodes_of_a_calibrated_one(
    original: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    timed, served = quantise_for_timing(original), quantise(original, feeds)
    assert sorted(n.op_type for n in timed.graph.node) == sorted(n.op_type for n in served.graph.node)


def test_old_opsets_are_raised_or_said() -> None:
    old = resnet((1,), (8,), size=8)
    old.opset_import[0].version = 11
    raised = raise_opset(old)
    assert raised.opset_import[0].version == 13
    x = {"input": images(4, 8)}
    np.testing.assert_allclose(Session(raised).run(x)[0], Session(old).run(x)[0], rtol=1e-4, atol=1e-5)
    old.graph.node[0].op_type = "Unknown"
    with pytest.raises(ModelError, match="needs opset 13, the model is of opset 11"):
        raise_opset(old)


def test_a_model_in_float16_keeps_its_signature_and_is_near(
    original: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    half = in_half(original, feeds)
    onnx.checker.check_model(half)
    same_signature(original, half)
    types = {t.data_type for t in half.graph.initializer if len(t.dims) == 4}
    assert types == {onnx.TensorProto.FLOAT16}
    assert share_of_variance(half, original) < 1e-4


def test_a_layer_that_overflows_float16_stays_in_float32(feeds: list[dict[str, np.ndarray]]) -> None:
    model = normalise(raise_opset(resnet((1,), (8,), size=16, classes=5)))
    convs = [n for n in model.graph.nodes if n.op == "Conv"]
    convs[1].inputs[1].values = np.asarray(convs[1].inputs[1].values) * np.float32(1e6)
    proto = model.finished()
    large = overflowing(proto, feeds)
    assert convs[1].name in large
    half = in_half(proto, feeds)
    np.testing.assert_allclose(scores(half), scores(proto), rtol=0.02, atol=0.02 * np.abs(scores(proto)).max())
    weights = {t.name: t.data_type for t in half.graph.initializer}
    assert weights[convs[1].inputs[1].name] == onnx.TensorProto.FLOAT
    assert weights[convs[0].inputs[1].name] == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(("saturating", "largest"), [(True, 64), (False, 127)])
def test_weights_have_seven_bits_where_sums_of_products_would_saturate(
    original: onnx.ModelProto,
    feeds: list[dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
    saturating: bool,
    largest: int,
) -> None:
    monkeypatch.setattr("calib.runtime.quantisation.saturates", lambda: saturating)
    values = [onnx.numpy_helper.to_array(t) for t in quantise(original, feeds).graph.initializer]
    weights = [v for v in values if v.dtype == np.int8 and v.ndim == 4]
    assert weights and max(int(np.abs(w.astype(int)).max()) for w in weights) == largest
