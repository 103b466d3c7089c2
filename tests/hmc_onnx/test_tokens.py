"""Linear layers on tokens, as transformer blocks and other heads behind a ResNet have them, are layers like others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rewritten import check_rewritten, check_sound
from zoo import Builder, assert_same, images, run

import hmc_onnx
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.records.goal import Strategy
from passes.graph.cost import costs
from passes.graph.model import Model
from passes.normal_form.normalise import normalise

TOKENS, WIDTH, INNER = 64, 16, 48
SETTINGS = hmc_onnx.Settings(samples=48, kl_samples=16, chunk=16, align=2, fine=False, provider="cpu")


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """A Conv, two linear layers on the pixels as tokens, their mean, and a linear layer."""
    b = Builder()
    x = b.node("Reshape", b.node("Relu", b.conv("input", 3, WIDTH, at="stem")), b.const([0, WIDTH, -1]))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    x = b.node("Relu", b.matmul(x, WIDTH, INNER, at="up"))
    x = b.mean(b.matmul(x, INNER, WIDTH, at="down"), (1,))
    return b.model(b.gemm(x, WIDTH, 10))


def test_they_are_pruned_and_decomposed_exactly(network: onnx.ModelProto) -> None:
    compressible, share = check_rewritten(network, {"input": images(3, 8)})
    assert set(compressible.layers) == {"stem/Conv", "up/MatMul", "down/MatMul", "fc/Gemm"}
    assert set(compressible.groups) == {"stem/Conv", "up/MatMul", "down/MatMul"}
    assert share < 0.7


def test_their_macs_are_counted_for_every_token(network: onnx.ModelProto) -> None:
    macs = TOKENS * WIDTH * INNER
    for model in (Model(network), normalise(network)):
        found = {name: cost.macs for name, cost in costs(model).items()}
        assert found["up/MatMul"] == found["down/MatMul"] == macs


def test_a_network_of_tokens_is_compressed_for_every_batch(network: onnx.ModelProto) -> None:
    goal = hmc_onnx.Goal(target=hmc_onnx.Target(macs=0.6), strategy="lowrank")
    result = hmc_onnx.compress(network, {"input": images(48, 8)}, goal, settings=SETTINGS)
    check_sound(network, result.model)
    assert result.report.b.macs <= 0.6 * result.report.a.macs
    assert result.plan.layers["up/MatMul"].method == "svd"
    x = images(3, 8, seed=1)
    (together,), (expected,) = run(result.model, x), run(network, x)
    alone = [run(result.model, x[i : i + 1])[0] for i in range(3)]
    assert_same([together], [np.concatenate(alone)])
    assert np.square(together - expected).mean() < 0.1 * expected.var()


@pytest.mark.parametrize("strategy", ["lowrank", "prune"])
def test_steps_that_come_before_the_images_are_tokens_too(strategy: Strategy) -> None:
    """The head of a network that reads text: a linear layer for each column of the image, as (T, N, C)."""
    b = Builder()
    x = b.node("Relu", b.conv(b.node("Relu", b.conv("input", 3, 8, at="stem")), 8, WIDTH, at="last"))
    x = b.node("Transpose", b.mean(x, (2,)), perm=[2, 0, 1])
    x = b.node("Relu", b.matmul(x, WIDTH, INNER, at="up"))
    network = b.model({b.matmul(x, INNER, 10, at="down"): (8, "N", 10)})
    found = find_compressible(normalise(network), {"input": (1, 3, 8, 8)})
    assert set(found.layers) == {"stem/Conv", "last/Conv", "up/MatMul", "down/MatMul"}
    assert set(found.groups) == {"stem/Conv", "up/MatMul"}  # whose channels stay behind the batch
    goal = hmc_onnx.Goal(target=hmc_onnx.Target(macs=0.6), strategy=strategy)
    result = hmc_onnx.compress(network, {"input": images(48, 8)}, goal, settings=SETTINGS)
    assert result.report.b.macs <= 0.6 * result.report.a.macs
    x = images(3, 8, seed=1)
    (together,), (expected,) = run(result.model, x), run(network, x)
    alone = [run(result.model, x[i : i + 1])[0] for i in range(3)]
    assert_same([together], [np.concatenate(alone, axis=1)])
    assert np.square(together - expected).mean() < 0.1 * expected.var()
