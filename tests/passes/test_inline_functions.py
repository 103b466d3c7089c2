"""Calls of model-local functions become the functions' nodes, so that the layers inside are layers like others."""

from __future__ import annotations

import onnx
import pytest
from zoo import Builder, assert_same, images, run

from passes.channels import trace
from passes.normal_form.inline_functions import inline_functions
from passes.normal_form.normalise import normalise

SWISH = '<domain: "local", opset_import: ["" : {opset}]> Swish (x) => (y) {{ s = Sigmoid(x)  y = Mul(x, s) }}'
BLOCK = """<domain: "local", opset_import: ["" : {opset}, "local" : 1]> Block <n> (x, w) => (y) {{
    a = Conv <pads = [1, 1, 1, 1], group: int = @n> (x, w)  y = local.Swish(a)
}}"""


def network(opset: int = 17, of_functions: int = 17) -> onnx.ModelProto:
    """A Conv inside a function that calls another one, used twice with different weights."""
    b = Builder(opset=opset)
    x = b.conv("input", 3, 8, at="stem")
    for _ in range(2):
        x = b.node("Block", x, b.const(b.normal(8, 8, 3, 3, scale=0.2), "weight"), domain="local", n=1)
    proto = b.model({b.conv(x, 8, 4): ["N", 4, 8, 8]}, check=False)
    proto.functions.extend(onnx.parser.parse_function(t.format(opset=of_functions)) for t in (SWISH, BLOCK))
    return proto


@pytest.mark.parametrize("of_functions", [17, 15])
def test_functions_in_functions_are_inlined(of_functions: int) -> None:
    proto = network(of_functions=of_functions)
    before = proto.SerializeToString(deterministic=True)
    model = normalise(proto)
    done = model.finished()
    assert proto.SerializeToString(deterministic=True) == before
    operators = [n.op_type for n in done.graph.node]
    assert operators == ["Conv", *["Conv", "Sigmoid", "Mul"] * 2, "Conv"]
    assert not done.functions
    assert len({n.name for n in done.graph.node}) == len(operators)
    assert [g.closed for g in trace(model).groups[:-1]] == [None] * 3
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))


def test_weights_are_handed_on_without_a_copy_of_the_model() -> None:
    proto = network()
    assert list(inline_functions(proto).graph.initializer) == list(proto.graph.initializer)


def test_a_model_without_functions_is_the_model_itself() -> None:
    b = Builder()
    proto = b.model(b.conv("input", 3, 4))
    assert inline_functions(proto) is proto
