"""ConvTransposes, as decoders of U-Nets and other networks that enlarge the image have them, are layers like others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rewritten import check_rewritten, check_sound
from zoo import Builder, images, run

import hmc_onnx
from hmc_onnx.analysis.find_compressible import find_compressible
from passes.graph.cost import costs
from passes.normal_form.normalise import normalise

SETTINGS = hmc_onnx.Settings(samples=48, kl_samples=16, chunk=16, align=2, fine=False, provider="cpu")


def enlarge(b: Builder, x: str, inputs: int, outputs: int, kernel: int, at: str, bias: bool = True) -> str:
    """A ConvTranspose that doubles height and width, and a Relu."""
    weight = b.normal(inputs, outputs, kernel, kernel, scale=(2 * 4 / inputs) ** 0.5 / kernel)
    read = [b.const(weight, f"{at}.weight"), *([b.const(b.normal(outputs, scale=0.1), f"{at}.bias")] if bias else [])]
    pads = [kernel // 2 - 1] * 4
    return b.node("Relu", b.node("ConvTranspose", x, *read, at=at, strides=[2, 2], pads=pads))


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """An encoder, and a decoder whose first ConvTranspose does not overlap and whose second does."""
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 16, strides=[2, 2], at="down1"))
    x = b.node("Relu", b.conv(x, 16, 32, strides=[2, 2], at="down2"))
    x = enlarge(b, x, 32, 16, 2, "up1")
    x = enlarge(b, x, 16, 16, 4, "up2", bias=False)
    return b.model(b.conv(x, 16, 2, 1, at="head"), ("N", 3, 16, 16))


def test_they_are_pruned_and_decomposed_exactly(network: onnx.ModelProto) -> None:
    compressible, share = check_rewritten(network, {"input": images(2)})
    assert {"up1/ConvTranspose", "up2/ConvTranspose"} < compressible.layers.keys()
    assert {"up1/ConvTranspose", "up2/ConvTranspose"} < compressible.groups.keys()
    assert share < 0.7


@pytest.mark.parametrize("strategy", ["lowrank", "prune"])
def test_a_network_with_them_is_compressed(network: onnx.ModelProto, strategy: str) -> None:
    goal = hmc_onnx.Goal(target=hmc_onnx.Target(macs=0.6), strategy=strategy)
    result = hmc_onnx.compress(network, {"input": images(48)}, goal, settings=SETTINGS)
    check_sound(network, result.model)
    assert result.report.b.macs <= 0.6 * result.report.a.macs
    layers, groups = result.plan.layers, result.plan.groups
    if strategy == "lowrank":
        assert {layers[f"up{i}/ConvTranspose"].method for i in (1, 2)} - {"keep"}
    else:
        assert groups["up1/ConvTranspose"].removed or groups["up2/ConvTranspose"].removed
    x = images(3, seed=1)
    (found,), (expected,) = run(result.model, x), run(network, x)
    assert found.shape == expected.shape
    assert np.square(found - expected).mean() < 0.5 * expected.var()


def test_their_macs_are_counted_for_every_input_position(network: onnx.ModelProto) -> None:
    model = normalise(network)
    found = find_compressible(model, {"input": (1, 3, 16, 16)}).layers
    for name, macs in (("up1/ConvTranspose", 4 * 4 * 32 * 16 * 2 * 2), ("up2/ConvTranspose", 8 * 8 * 16 * 16 * 4 * 4)):
        assert found[name].macs() == costs(model)[name].macs == macs
