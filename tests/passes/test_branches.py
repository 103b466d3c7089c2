"""Residual branches: which layers end one, and that without it the network is what it was with those layers at zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError
from zoo import Builder, assert_same, images, resnet, run

from passes.branches import RemoveBranch, remove_branch
from passes.graph.layers import layer_of, write_layer
from passes.graph.model import Model
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise
from passes.residual import residual_sum


def preactivation() -> onnx.ModelProto:
    """Sums that a block's first Relu and the next sum read, as in He et al., ECCV 2016."""
    b = Builder()
    x = b.conv("input", 3, 4, at="stem")
    for i, (inputs, outputs) in enumerate([(4, 4), (4, 8), (8, 8)]):
        stride = outputs // inputs
        y = b.node("Relu", x)
        x = b.conv(y, inputs, outputs, 1, strides=[stride] * 2, at=f"{i}.shortcut") if stride > 1 else x
        y = b.node("Relu", b.conv(y, inputs, outputs, strides=[stride] * 2, at=f"{i}.conv1"))
        x = b.node("Add", x, b.conv(y, outputs, outputs, at=f"{i}.conv2"))
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x)), axis=1)
    return b.model(b.gemm(x, 8, 5))


def linear() -> onnx.ModelProto:
    """A residual branch of Gemms, whose sum is read through a Relu that is the output."""
    b = Builder()
    x = b.node("Relu", b.gemm("input", 6, 8, at="first"))
    y = b.gemm(b.node("Relu", b.gemm(x, 8, 12, at="wide")), 12, 8, at="last")
    return b.model(b.node("Relu", b.node("Add", x, y)), ("N", 6))


# The last layers of the branches, with the operators that go with each.
BASIC = {"Conv": 2, "Relu": 1, "Add": 1}
NETS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, dict[str, int]]]] = {
    "option A": (
        lambda: resnet((2, 1), (4, 8), size=8),
        {
            "/layer1.0.conv2/Conv": BASIC | {"Relu": 2},  # with the Relu of what is a Relu's output already
            "/layer1.1.conv2/Conv": BASIC | {"Relu": 2},
            "/layer2.0.conv2/Conv": BASIC,
        },
    ),
    "option A as dynamo writes it": (
        lambda: resnet((1, 1), (4, 8), option_a="dynamo", batchnorm="nodes", weights="constants", opset=18, size=8),
        {"/layer1.0.conv2/Conv": BASIC | {"Relu": 2}, "/layer2.0.conv2/Conv": BASIC},
    ),
    "option B": (
        lambda: resnet((1, 2), (4, 8), shortcut="B", size=8),
        {
            "/layer1.0.conv2/Conv": BASIC | {"Relu": 2},
            "/layer2.0.conv2/Conv": BASIC,
            "/layer2.0.downsample/Conv": {"Conv": 1, "Add": 1},
            "/layer2.1.conv2/Conv": BASIC | {"Relu": 2},
        },
    ),
    "bottlenecks": (
        lambda: resnet((2,), (4,), shortcut="B", block="bottleneck", size=8),
        {
            "/layer1.0.conv3/Conv": {"Conv": 3, "Relu": 2, "Add": 1},
            "/layer1.0.downsample/Conv": {"Conv": 1, "Add": 1},
            "/layer1.1.conv3/Conv": {"Conv": 3, "Relu": 3, "Add": 1},
        },
    ),
    "pre-activation": (
        preactivation,
        {
            "0.conv2/Conv": {"Conv": 2, "Relu": 2, "Add": 1},
            # its own first Relu is the shortcut's, too, and so stays
            "1.conv2/Conv": BASIC,
            "1.shortcut/Conv": {"Conv": 1, "Add": 1},
            "2.conv2/Conv": {"Conv": 2, "Relu": 2, "Add": 1},
        },
    ),
    "Gemms, before a Relu that is the output": (linear, {"last/Gemm": {"Gemm": 2, "Relu": 1, "Add": 1}}),
}
CASES = [(net, end) for net, (_, ends) in NETS.items() for end in ends]


def ends(model: Model) -> dict[str, gs.Node]:
    """The layers that end a residual branch."""
    shapes = infer_shapes(model, batch_one(model))
    layers = [n for n in model.graph.nodes if n.op in ("Conv", "Gemm")]
    sums = {n.name: (n, residual_sum(model.graph, n, shapes)) for n in layers}
    return {name: node for name, (node, joined) in sums.items() if joined is not None and joined.removable}


def silenced(model: Model, names: Sequence[str]) -> onnx.ModelProto:
    """The model with the weights and biases of some layers at zero."""
    model = model.copy()
    shapes = infer_shapes(model, batch_one(model))
    for node in [n for n in model.graph.nodes if n.name in names]:
        layer = layer_of(node, shapes)
        write_layer(model.graph, node, np.zeros_like(layer.weight), np.zeros_like(layer.bias))
    return model.finished()


def inputs(model: Model) -> np.ndarray:
    return images(3, 8) if len(model.graph.inputs[0].shape) == 4 else images(2, 3, 3).reshape(-1, 6)


@pytest.mark.parametrize("net", NETS)
def test_a_branch_ends_with_its_last_layer_at_the_sum(net: str) -> None:
    build, expected = NETS[net]
    model = normalise(build())
    found = ends(model)
    assert found.keys() == expected.keys()
    shapes = infer_shapes(model, batch_one(model))
    for node in found.values():
        joined = residual_sum(model.graph, node, shapes)
        assert joined is not None and joined.direct and joined.add is node.outputs[0].outputs[0]


@pytest.mark.parametrize(("net", "end"), CASES, ids=map(" ".join, CASES))
def test_a_network_without_a_branch_is_that_with_its_last_layer_at_zero(net: str, end: str) -> None:
    build, expected = NETS[net]
    model = normalise(build())
    before = Counter(n.op for n in model.graph.nodes)
    zeroed = run(silenced(model, [end]), inputs(model))
    assert np.abs(zeroed[0] - run(model.finished(), inputs(model))[0]).max() > 1e-3
    remove_branch(model.graph, ends(model)[end])
    without = model.finished()
    assert_same(run(without, inputs(model)), zeroed)
    before.subtract(n.op_type for n in without.graph.node)
    assert {op: count for op, count in before.items() if count} == expected[end]


@pytest.mark.parametrize("net", NETS)
def test_all_branches_can_go(net: str) -> None:
    model = normalise(NETS[net][0]())
    nodes = {k: v for k, v in ends(model).items() if "shortcut" not in k and "downsample" not in k}
    zeroed = run(silenced(model, list(nodes)), inputs(model))
    for node in nodes.values():
        remove_branch(model.graph, node)
    without = model.finished()
    assert_same(run(without, inputs(model)), zeroed)
    assert "Add" not in {n.op_type for n in without.graph.node}


@pytest.mark.parametrize(("net", "end"), CASES, ids=map(" ".join, CASES))
def test_the_pass_removes_the_same_branch(net: str, end: str) -> None:
    model = normalise(NETS[net][0]())
    result = RemoveBranch(end)(ir.from_proto(model.finished()))
    remove_branch(model.graph, ends(model)[end])
    assert result.modified
    found, expected = ir.to_proto(result.model), model.finished()
    assert sorted(n.name for n in found.graph.node) == sorted(n.name for n in expected.graph.node)
    for ours, theirs in zip(run(found, inputs(model)), run(expected, inputs(model)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("node", ["/layer1.0.conv1/Conv", "/layer1.0/Add", "nothing"])
def test_the_pass_refuses_what_ends_no_branch(node: str) -> None:
    model = ir.from_proto(normalise(resnet((1,), (4,), size=8)).finished())
    with pytest.raises(PreconditionError, match=f"the model has no node 'nothing'|'{node}' is no layer that ends"):
        RemoveBranch(node)(model)


def test_what_only_the_branch_read_stays_until_the_graph_is_cleaned_up() -> None:
    model = normalise(resnet((1,), (4,), size=8))
    count = len(model.graph.nodes)
    remove_branch(model.graph, ends(model)["/layer1.0.conv2/Conv"])
    assert len(model.graph.nodes) == count
    model.graph.cleanup()
    assert [n.op for n in model.graph.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert {c.name.split(".")[0] for c in model.constants()} == {"conv1", "linear"}


def spread(b: Builder, y: str, x: str) -> str:
    return b.node("Add", y, b.node("GlobalAveragePool", x))


# What reads the last Conv (y) where another tensor of its shape is at hand (x).
NO_BRANCH: dict[str, Callable[[Builder, str, str], str | list[str]]] = {
    "it is not before an Add": lambda b, y, x: b.node("Relu", y),
    "it is in a product": lambda b, y, x: b.node("Mul", y, x),
    "a Relu lies before the sum": lambda b, y, x: b.node("Add", b.node("Relu", y), x),
    "two read it": lambda b, y, x: b.node("Relu", b.node("Mul", b.node("Add", y, x), y)),
    "both terms are it": lambda b, y, x: b.node("Relu", b.node("Add", y, y)),
    "the sum is an output": lambda b, y, x: b.node("Add", y, x),
    "it is an output": lambda b, y, x: [b.node("Relu", b.node("Add", y, x)), y],
    "the other term is constant": lambda b, y, x: b.node("Relu", b.node("Add", y, b.const(b.normal(1, 3, 8, 8)))),
    "the other term is the input": lambda b, y, x: b.node("Relu", b.node("Add", y, "input")),
    "the other term is spread": lambda b, y, x: b.node("Relu", spread(b, y, x)),
}


@pytest.mark.parametrize("why", NO_BRANCH)
def test_it_is_no_branch_where(why: str) -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 3, at="first"))
    outputs = NO_BRANCH[why](b, b.conv(x, 3, 3, at="last"), x)
    assert ends(Model(b.model(outputs))) == {}


def test_it_is_no_branch_where_its_own_output_is_spread() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 3))
    y = b.conv(b.node("GlobalAveragePool", x), 3, 3, 1)
    assert ends(Model(b.model(b.node("Relu", b.node("Add", x, y))))) == {}
