"""A vector that becomes an image: its channels are those of the first axis."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Builder, images

import hmc_onnx


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 3, 1, 2]])
def test_convs_behind_a_reshaped_gemm_are_compressed(order: list[int]) -> None:
    b = Builder()
    x = b.node("Reshape", b.gemm(b.node("Flatten", "input"), 192, 256), b.const([-1, 4, 8, 8]))
    x = b.node("Transpose", x, perm=order)
    channels = (4, 8)[order[1] == 3]
    x = b.conv(b.node("Relu", b.conv(x, channels, 16, at="one")), 16, 4, at="two")
    settings = hmc_onnx.Settings(samples=16, kl_samples=16, positions=8, align=2, chunk=16, provider="cpu", threads=1)
    result = hmc_onnx.compress(b.model(x), {"input": images(16, 8)}, "macs=0.6", settings=settings)
    assert result.report.b.macs <= 0.6 * result.report.a.macs
    assert np.isfinite(result.report.kl)
