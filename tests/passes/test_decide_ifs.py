"""Ifs that static shapes decide become the branch that is taken; what depends on the batch or on values stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from zoo import Builder, assert_same, images, run

from passes.normal_form.normalise import normalise


def branch(build, x: str) -> onnx.GraphProto:
    b = Builder()
    y = build(b, x)
    return helper.make_graph(b.nodes, "branch", [], [onnx.ValueInfoProto(name=y)], b.initializers)


def squeeze_if(b: Builder, x: str, axis: int) -> str:
    """`x.squeeze(axis)` as TorchScript's exporter writes it."""
    size = b.node("Gather", b.node("Shape", x), b.const(np.int64(axis)))
    return b.node(
        "If",
        b.node("Equal", size, b.const(np.int64(1))),
        then_branch=branch(lambda i, x: i.node("Squeeze", x, i.const([axis])), x),
        else_branch=branch(lambda i, x: i.node("Identity", x), x),
    )


def ifs(proto: onnx.ModelProto) -> int:
    return sum(n.op_type == "If" for n in proto.graph.node)


@pytest.mark.parametrize("constants", [False, True])
def test_a_squeeze_of_static_axes_is_decided(constants: bool) -> None:
    """Two of them, the second behind the first, whose shape is known only once that one is decided."""
    b = Builder(constants=constants)
    x = b.node("GlobalAveragePool", b.conv("input", 3, 4))
    x = squeeze_if(b, squeeze_if(b, x, 3), 2)
    proto = b.model({b.gemm(x, 4, 5): ["N", 5]}, check=False)
    done = normalise(proto).finished()
    assert [n.op_type for n in done.graph.node] == ["Conv", "GlobalAveragePool", "Squeeze", "Squeeze", "Gemm"]
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))


def test_an_axis_that_is_not_one_takes_the_other_branch() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    one = b.node("Equal", b.node("Gather", b.node("Shape", x), b.const(np.int64(2))), b.const(np.int64(1)))
    then, otherwise = (branch(lambda i, x, op=op: i.node(op, x), x) for op in ("Relu", "Neg"))
    proto = b.model({b.node("If", one, then_branch=then, else_branch=otherwise): ["N", 4, 8, 8]}, check=False)
    done = normalise(proto).finished()
    assert [n.op_type for n in done.graph.node] == ["Conv", "Neg"]
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))


def test_a_condition_on_the_batch_stays_open() -> None:
    b = Builder()
    one = b.node("Equal", b.node("Gather", b.node("Shape", "input"), b.const(np.int64(0))), b.const(np.int64(1)))
    x = b.conv("input", 3, 4)
    then, otherwise = (branch(lambda i, x, op=op: i.node(op, x), x) for op in ("Relu", "Neg"))
    proto = b.model({b.node("If", one, then_branch=then, else_branch=otherwise): ["N", 4, 8, 8]}, check=False)
    done = normalise(proto).finished()
    assert ifs(done) == 1
    for batch in (1, 3):
        assert_same(run(done, images(batch, 8)), run(proto, images(batch, 8)))


@pytest.mark.parametrize("build", [
    lambda b, n: b.node("Equal", n, b.const(np.int64(3))),
    lambda b, n: b.node("Greater", n, b.const(np.int64(64))),
    lambda b, n: b.node("Equal", b.node("Div", n, b.const(np.int64(100))), b.const(np.int64(0))),
    lambda b, n: b.node("Not", b.node("Equal", b.node("Mul", n, b.const(np.int64(4))), b.const(np.int64(12)))),
])  # fmt: skip
def test_a_condition_that_few_batches_change_stays_open(build) -> None:
    b = Builder()
    size = b.node("Gather", b.node("Shape", "input"), b.const(np.int64(0)))
    x = b.conv("input", 3, 4)
    then, otherwise = (branch(lambda i, x, op=op: i.node(op, x), x) for op in ("Relu", "Neg"))
    proto = b.model(
        {b.node("If", build(b, size), then_branch=then, else_branch=otherwise): ["N", 4, 8, 8]}, check=False
    )
    done = normalise(proto).finished()
    assert ifs(done) == 1
    for batch in (1, 3, 100):
        assert_same(run(done, images(batch, 8)), run(proto, images(batch, 8)))


def test_a_condition_on_values_stays_open() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    bright = b.node("Greater", b.node("ReduceMean", x, keepdims=0), b.const(np.float32(0)))
    then, otherwise = (branch(lambda i, x, op=op: i.node(op, x), x) for op in ("Relu", "Neg"))
    proto = b.model({b.node("If", bright, then_branch=then, else_branch=otherwise): ["N", 4, 8, 8]}, check=False)
    assert ifs(normalise(proto).finished()) == 1


def test_weights_inside_a_decided_branch_come_with_it() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    size = b.node("Gather", b.node("Shape", x), b.const(np.int64(1)))
    four = b.node("Equal", size, b.const(np.int64(4)))
    then = branch(lambda i, x: i.conv(x, 4, 4, at="taken"), x)
    otherwise = branch(lambda i, x: i.conv(x, 4, 4, at="left"), x)
    proto = b.model({b.node("If", four, then_branch=then, else_branch=otherwise): ["N", 4, 8, 8]}, check=False)
    done = normalise(proto).finished()
    assert [n.op_type for n in done.graph.node] == ["Conv", "Conv"]
    assert done.graph.node[1].name.endswith("taken/Conv")
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))
    assert done.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
