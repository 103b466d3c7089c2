"""Weights on an INT8 grid: they lie on it, the quantiser leaves them there, and the responses change little."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from zoo import Builder, images

from calib.runtime.quantisation import quantise, weight_levels
from hmc_onnx.rewriting.rounding import rounded


def drawn(outputs: int = 8, inputs: int = 6, kernel: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Weights (O, I, k, k), and the second moment of patches whose entries are alike, as neighbouring pixels are."""
    rng = np.random.default_rng(0)
    n = inputs * kernel * kernel
    patches = rng.normal(size=(500, 1)) + 0.3 * rng.normal(size=(500, n))
    return rng.normal(size=(outputs, inputs, kernel, kernel)), patches.T @ patches / 500


@pytest.mark.parametrize("levels", [64, 127])
@pytest.mark.parametrize("feedback", [False, True])
def test_weights_are_whole_steps_and_the_largest_stays(levels: int, feedback: bool) -> None:
    weight, second = drawn()
    found = rounded(weight, levels, second if feedback else None)
    steps = np.abs(weight).max((1, 2, 3), keepdims=True) / levels
    counts = found / steps
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    assert np.abs(counts).max() <= levels + 1e-9
    np.testing.assert_array_equal(np.abs(found).max((1, 2, 3)), np.abs(weight).max((1, 2, 3)))


def test_feedback_changes_the_responses_less_than_rounding_to_the_nearest() -> None:
    weight, second = drawn()
    errors = []
    for moment in (None, second):
        off = (rounded(weight, 8, moment) - weight).reshape(len(weight), -1)
        errors.append(float(np.einsum("on,nm,om->", off, second, off)))
    assert errors[1] < 0.5 * errors[0]


def test_channels_of_zeros_and_of_one_input_are_rounded_too() -> None:
    weight = np.zeros((3, 1, 1, 1))
    weight[1] = 2.5
    for second in (None, np.ones((1, 1))):
        np.testing.assert_array_equal(rounded(weight, 127, second), weight)


def test_the_quantiser_finds_the_same_grid() -> None:
    provider = "CPUExecutionProvider"
    weight, second = drawn(outputs=8, inputs=3)
    on_grid = rounded(weight.astype(np.float32), weight_levels(provider), second).astype(np.float32)
    b = Builder()
    x = b.node("Conv", "input", b.const(on_grid), b.const(np.zeros(8, np.float32)), kernel_shape=[3, 3])
    proto = b.model(b.gemm(b.mean(b.node("Relu", x)), 8, 5))
    quantised = quantise(proto, [{"input": images(4, 8)}], "minmax", provider)
    held = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    (name,) = [n for n, values in held.items() if values.dtype == np.int8 and values.shape == weight.shape]
    scale = held[name.removesuffix("_quantized") + "_scale"]
    found = held[name].astype(np.float64) * scale[:, None, None, None]
    np.testing.assert_allclose(found, on_grid, rtol=1e-6, atol=1e-7)
