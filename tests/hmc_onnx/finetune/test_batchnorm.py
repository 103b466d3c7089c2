"""Batch normalisation put behind Convs and folded away: the function is the same, also after training."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from exported import exported
from zoo import Builder

from calib.runtime.sessions import Session
from hmc_onnx.finetune.batchnorm import folded, reinserted, restated
from hmc_onnx.finetune.module import GraphModule, updated

X = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)


def run(proto: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    return Session(proto).run({proto.graph.input[0].name: x})[0]


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return exported("resnet20a-torchscript-13")


def test_putting_it_in_changes_nothing(proto: onnx.ModelProto) -> None:
    with_norms, inserted = reinserted(proto, [torch.from_numpy(X[:8]), torch.from_numpy(X[8:])])
    assert len(inserted) == sum(n.op_type == "Conv" for n in proto.graph.node) == 19
    onnx.checker.check_model(with_norms, full_check=True)
    y = run(proto)
    np.testing.assert_allclose(run(with_norms), y, rtol=0, atol=1e-5 * np.abs(y).max())
    weights = GraphModule(with_norms).values()
    for names in inserted:
        rows = weights[names.weight].reshape(len(weights[names.weight]), -1)
        np.testing.assert_allclose((rows**2).sum(1), 1, rtol=1e-5)


def test_it_holds_the_statistics_of_the_images(proto: onnx.ModelProto) -> None:
    with_norms, _ = reinserted(proto, [torch.from_numpy(X)])
    module = GraphModule(with_norms)
    with torch.no_grad():
        (own,) = module(torch.from_numpy(X))
        module.mode.batch_statistics = True
        (of_the_batch,) = module(torch.from_numpy(X))
    np.testing.assert_allclose(of_the_batch.numpy(), own.numpy(), rtol=0, atol=1e-3 * own.abs().max().item())


@pytest.mark.parametrize("name", ["preresnet18-torchscript-17-bn", "resnet20a-torchscript-17-bn"])
def test_a_graphs_own_take_the_statistics_of_the_images(name: str) -> None:
    proto = exported(name)
    norms = [n for n in proto.graph.node if n.op_type == "BatchNormalization"]
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).standard_normal((16, *shape[1:])).astype(np.float32)
    changed = restated(proto, [torch.from_numpy(images[:8]), torch.from_numpy(images[8:])])
    assert changed.graph.node == proto.graph.node
    y = run(proto, images)
    np.testing.assert_allclose(run(changed, images), y, rtol=0, atol=2e-5 * np.abs(y).max())
    module, values = GraphModule(changed, [n.input[0] for n in norms]), GraphModule(changed).values()
    with torch.no_grad():
        inputs = [x.double().numpy() for x in module(torch.from_numpy(images))]
    for node, x in zip(norms, inputs, strict=True):
        np.testing.assert_allclose(values[node.input[3]], x.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(values[node.input[4]], x.var((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_a_normalised_input_and_shared_statistics() -> None:
    b = Builder()
    scale, shift, mean, var = (b.const(abs(b.normal(3)), n) for n in ("scale", "shift", "mean", "var"))
    x = b.node("BatchNormalization", "input", scale, shift, mean, var, at="first", epsilon=1e-3)
    own = [b.const(abs(b.normal(3)), n) for n in ("scale2", "shift2", "mean2")]
    x = b.node("BatchNormalization", x, *own, var, at="second")
    proto = b.model(b.node("GlobalAveragePool", x), ("N", 3, 16, 16))
    changed = restated(proto, [torch.from_numpy(X)])
    assert changed == proto  # they share a variance
    proto.graph.node[1].input[4] = "scale2"
    changed = restated(proto, [torch.from_numpy(X)])
    np.testing.assert_allclose(run(changed), run(proto), rtol=0, atol=1e-5)
    values = GraphModule(changed).values()
    np.testing.assert_allclose(values["mean"], X.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["mean2"], GraphModule(proto).values()["mean2"])


def test_what_is_learnt_is_folded_into_the_convs(proto: onnx.ModelProto) -> None:
    with_norms, inserted = reinserted(proto, [torch.from_numpy(X)])
    rng = np.random.default_rng(1)
    values = {n: v + 0.1 * rng.random(v.shape, np.float32) for n, v in GraphModule(with_norms).values().items()}
    learnt = run(updated(with_norms, values))
    written = updated(proto, folded(values, inserted))
    assert written.graph.node == proto.graph.node
    np.testing.assert_allclose(run(written), learnt, rtol=0, atol=1e-5 * np.abs(learnt).max())
    assert np.abs(learnt - run(proto)).max() > 1e-2 * np.abs(learnt).max()


def test_shared_weights_and_convs_without_bias_are_left_alone() -> None:
    b = Builder()
    weight, bias = b.const(b.normal(3, 3, 1, 1), "w"), b.const(b.normal(3), "b")
    x = b.node("Conv", "input", weight, bias, at="one")
    x = b.node("Conv", x, weight, b.const(b.normal(3), "own"), at="two")
    x = b.node("Conv", x, b.const(b.normal(3, 3, 1, 1), "alone"), at="three")
    x = b.conv(x, 3, 4, at="four")
    proto = b.model(b.node("GlobalAveragePool", x), ("N", 3, 16, 16))
    with_norms, inserted = reinserted(proto, [torch.from_numpy(X)])
    assert [names.weight for names in inserted] == ["four.weight"]
    np.testing.assert_allclose(run(with_norms), run(proto), rtol=0, atol=1e-5)


def test_chains_are_balanced_and_rows_of_zeros_stay_zeros() -> None:
    b = Builder()
    first = b.normal(6, 3, 3, 3, scale=100.0)
    first[2] = 0
    x = b.node("Conv", "input", b.const(first, "first"), at="first", pads=[1] * 4)
    x = b.node("Conv", x, b.const(b.normal(6, 1, 3, 3), "depthwise"), at="depthwise", pads=[1] * 4, group=6)
    last = b.normal(4, 6, 1, 1)
    last[1] = 0
    x = b.node("Conv", x, b.const(last, "last"), b.const(b.normal(4), "bias"), at="last")
    proto = b.model(b.node("GlobalAveragePool", x), ("N", 3, 16, 16))
    with_norms, inserted = reinserted(proto, [torch.from_numpy(X)])
    y = run(proto)
    np.testing.assert_allclose(run(with_norms), y, rtol=0, atol=1e-5 * np.abs(y).max())
    module = GraphModule(with_norms)
    values = module.values()
    for name in ("first", "depthwise", "last"):
        norms = np.sqrt((values[name].reshape(len(values[name]), -1) ** 2).sum(1))
        np.testing.assert_allclose(norms, np.where(norms > 0, 1, 0), rtol=1e-5)
    assert not values["first"][2].any() and not values["last"][1].any()
    written = updated(proto, folded(values, inserted))
    np.testing.assert_allclose(run(written), y, rtol=0, atol=1e-5 * np.abs(y).max())
