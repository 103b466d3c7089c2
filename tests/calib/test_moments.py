"""Moments against numpy on everything at once, and patches against onnxruntime's Conv."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from zoo import run

from calib.measure.moments import JointMoments, Moments, sample_positions, sampled_outputs, sampled_patches
from passes.graph.layers import Geometry


def fed(x: np.ndarray, y: np.ndarray, cuts: list[int]) -> Moments:
    moments = Moments()
    for a, b in zip([0, *cuts], [*cuts, len(x)], strict=True):
        moments.update(x[a:b], y[a:b])
    return moments


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 299), unique=True, max_size=6).map(sorted),
    st.sampled_from([0.0, 1e4, -1e4]),
)
def test_any_cut_gives_numpys_covariance_even_far_from_zero(seed: int, cuts: list[int], offset: float) -> None:
    rng = np.random.default_rng(seed)
    x, mix = rng.normal(size=(300, 5)), rng.normal(size=(5, 3))
    y = x @ mix + rng.normal(size=(300, 3))
    both = np.cov(np.concatenate([x, y], 1), rowvar=False, bias=True)
    moments = fed(x + offset, y - 2 * offset, cuts)
    assert moments.count == 300
    np.testing.assert_allclose(moments.second, both[:5, :5], atol=1e-9)
    np.testing.assert_allclose(moments.cross, both[5:, :5], atol=1e-9)
    np.testing.assert_allclose(moments.mean, x.mean(0) + offset, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.target_mean, y.mean(0) - 2 * offset, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("narrow", [0, 8])
def test_a_wide_layers_moments_are_those_of_a_narrow_one(monkeypatch: pytest.MonkeyPatch, narrow: int) -> None:
    monkeypatch.setattr("calib.measure.moments.NARROW", narrow)
    x = np.random.default_rng(0).normal(size=(5000, 8)) @ np.diag(np.arange(1, 9))
    np.testing.assert_allclose(fed(x, x[:, :2], [2000]).second, np.cov(x, rowvar=False, bias=True), atol=1e-9)


@pytest.mark.parametrize("narrow", [0, 8])
def test_infinite_patches_are_seen_in_the_moments_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, narrow: int
) -> None:
    monkeypatch.setattr("calib.measure.moments.NARROW", narrow)
    x = np.random.default_rng(0).normal(size=(100, 8))
    x[3, 4], x[7, 5] = np.inf, -np.inf
    moments = Moments()
    moments.update(x)
    assert not np.isfinite(moments.second[4, 4])


def test_float32_patches_are_summed_in_float64() -> None:
    x = (np.random.default_rng(0).normal(size=(20_000, 3)) + 100).astype(np.float32)
    moments = fed(x, x[:, :1], [7, 9_000])
    exact = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.second, exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.cross, exact[:1], rtol=1e-10, atol=1e-12)


def test_without_targets_there_are_only_the_patches() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4))
    moments = Moments()
    moments.update(x[:20])
    moments.update(x[20:])
    np.testing.assert_allclose(moments.second, np.cov(x, rowvar=False, bias=True), atol=1e-12)
    assert moments.cross.shape == (0, 4) and moments.target_mean.shape == (0,)


GEOMETRIES = {
    "3×3": Geometry(3, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "strides": Geometry(3, 4, (3, 3), (2, 3), (1, 1, 1, 1), (1, 1)),
    "dilations": Geometry(2, 5, (3, 2), (1, 1), (2, 1, 2, 1), (2, 3)),
    "asymmetric pads": Geometry(3, 4, (4, 3), (2, 1), (0, 2, 3, 1), (1, 2)),
    "even kernel": Geometry(3, 4, (2, 4), (1, 2), (1, 0, 0, 3), (1, 1)),
    "1-D": Geometry(3, 4, (5,), (2,), (3, 1), (2,)),
    "3-D": Geometry(2, 3, (2, 3, 2), (1, 2, 2), (0, 1, 1, 1, 0, 1), (2, 1, 1)),
    "1×1": Geometry(6, 2, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "Gemm": Geometry(5, 4),
    "transposed": Geometry(3, 4, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), transposed=True),
    "transposed, overlapping": Geometry(3, 4, (4, 3), (2, 1), (1, 0, 2, 1), (1, 2), transposed=True),
    "transposed, output padding": Geometry(
        2, 3, (3, 2), (2, 3), (1, 0, 1, 0), (1, 1), transposed=True, output_padding=(1, 2)
    ),
    "transposed 1-D": Geometry(3, 4, (5,), (3,), (2, 1), (2,), transposed=True),
}


def alone(geometry: Geometry, weight: np.ndarray, x: np.ndarray) -> onnx.ModelProto:
    """A model of one Conv or Gemm."""
    attributes = {
        "kernel_shape": geometry.kernel,
        "strides": geometry.strides,
        "pads": geometry.pads,
        "dilations": geometry.dilations,
    }
    op, attributes = ("Conv", attributes) if geometry.kernel else ("Gemm", {"transB": 1})
    if geometry.transposed:
        op, weight = "ConvTranspose", np.ascontiguousarray(weight.swapaxes(0, 1))
        attributes["output_padding"] = geometry.output_padding or [0] * len(geometry.kernel)
    graph = helper.make_graph(
        [helper.make_node(op, ["input", "w"], ["y"], **attributes)],
        "alone",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("most", [7, 10_000], ids=["some", "all"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
def test_patches_times_weights_are_onnxruntimes_outputs(geometry: Geometry, most: int) -> None:
    rng = np.random.default_rng(1)
    size = (9, 11, 8)[: len(geometry.kernel)]
    x = rng.normal(size=(3, geometry.inputs, *size)).astype(np.float32)
    weight = rng.normal(size=geometry.weight_shape).astype(np.float32)
    y = run(alone(geometry, weight, x), x)[0]
    assert y.shape[2:] == geometry.output_size(size)
    positions = sample_positions(geometry, size, most, rng)
    assert len(positions) == min(most, math.prod(y.shape[2:]))
    patches = sampled_patches(x, geometry, positions)
    assert patches.shape == (3 * len(positions), geometry.features)
    expected = y.reshape(3, len(weight), -1)[:, :, positions].transpose(0, 2, 1).reshape(-1, len(weight))
    np.testing.assert_allclose(patches @ weight.reshape(len(weight), -1).T, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(sampled_outputs(y, positions), expected)


def test_positions_are_distinct_in_order_and_the_seeds() -> None:
    geometry = GEOMETRIES["3×3"]
    first, again, other = (sample_positions(geometry, (9, 9), 20, np.random.default_rng(s)) for s in (0, 0, 1))
    assert (np.diff(first) > 0).all() and first[0] >= 0 and first[-1] < 81
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_joint_moments_give_the_fit_of_one_weight_and_several_biases() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 5))
    joint = JointMoments(2)
    for part, bias, count in ((0, 4.0, 40), (1, -7.0, 90), (0, 4.0, 30)):
        x = rng.normal(size=(count, 5)) + bias
        joint.parts[part].update(x, x @ weight.T + bias)
    fitted = np.linalg.solve(joint.second, joint.cross.T).T
    np.testing.assert_allclose(fitted, weight, atol=1e-9)
    biases = [part.target_mean - fitted @ part.mean for part in joint.parts]
    np.testing.assert_allclose(biases, [[4.0] * 3, [-7.0] * 3], atol=1e-9)
