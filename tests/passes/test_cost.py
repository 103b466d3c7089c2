"""MACs, parameters and bytes of each node, by values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from zoo import Builder, parsed, resnet

from passes.graph.cost import Cost, activation_bytes, costs, total
from passes.graph.model import Model
from passes.normal_form.normalise import normalise

IMAGE = (1, 3, 8, 8)


def cost_of(b: Builder, y: str, image: tuple = IMAGE) -> Cost:
    """Cost of the node that makes `y`."""
    return costs(Model(b.model(y, image)))[y.removesuffix("_output_0")]


@pytest.mark.parametrize(
    ("outputs", "kernel", "attributes", "macs", "parameters"),
    [
        (5, 3, {}, 5 * 64 * 27, 5 * 27 + 5),
        (5, 3, {"strides": [2, 2]}, 5 * 16 * 27, 5 * 27 + 5),
        (5, 3, {"strides": [2, 3]}, 5 * 4 * 3 * 27, 5 * 27 + 5),
        (5, 3, {"pads": [0] * 4}, 5 * 36 * 27, 5 * 27 + 5),
        (5, 3, {"pads": [0] * 4, "dilations": [2, 3]}, 5 * 4 * 2 * 27, 5 * 27 + 5),
        (5, (1, 3), {}, 5 * 64 * 9, 5 * 9 + 5),
        (5, 1, {"bias": False}, 5 * 64 * 3, 15),
        (6, 3, {"group": 3}, 6 * 64 * 9, 6 * 9 + 6),
    ],
)
def test_a_conv_costs_its_outputs_times_the_inputs_of_each(
    outputs: int, kernel: int, attributes: dict, macs: int, parameters: int
) -> None:
    b = Builder()
    assert cost_of(b, b.conv("input", 3, outputs, kernel, **attributes)) == Cost(macs, parameters, 4 * parameters)


def test_convs_of_one_and_three_axes_cost_alike() -> None:
    b = Builder()
    assert cost_of(b, b.conv("input", 3, 5, (3,)), (1, 3, 9)) == Cost(5 * 9 * 9, 50, 200)
    b = Builder()
    assert cost_of(b, b.conv("input", 3, 5, (3, 1, 3)), (1, 3, 4, 5, 6)) == Cost(5 * 120 * 27, 140, 560)


def test_a_transposed_conv_costs_its_inputs_times_the_outputs_of_each() -> None:
    b = Builder()
    y = b.node("ConvTranspose", "input", b.const(b.normal(3, 5, 2, 2)), strides=[2, 2])
    assert cost_of(b, y) == Cost(3 * 64 * 5 * 4, 60, 240)


def test_a_gemm_costs_its_weights_whichever_way_they_lie() -> None:
    b = Builder()
    x = b.node("Flatten", "input")
    assert cost_of(b, b.gemm(x, 192, 10)) == Cost(1920, 1930, 7720)
    y = b.node("Gemm", x, b.const(b.normal(192, 10)), at="/other")
    assert cost_of(b, y) == Cost(1920, 1920, 7680)


def test_a_gemm_of_a_transposed_input_costs_as_much() -> None:
    b = Builder()
    x = b.node("Reshape", "input", b.const([192, 1]))
    assert cost_of(b, b.node("Gemm", x, b.const(b.normal(192, 10)), transA=1)).macs == 1920


def test_a_matmul_costs_one_matrix_for_each_row() -> None:
    b = Builder()
    x = b.node("Reshape", "input", b.const([1, 3, 64]))
    assert cost_of(b, b.matmul(x, 64, 10, bias=False)) == Cost(3 * 64 * 10, 640, 2560)


def test_a_product_of_activations_costs_macs_and_no_parameters() -> None:
    b = Builder()
    y = b.node("MatMul", "input", b.node("Transpose", "input", perm=[0, 1, 3, 2]))
    assert cost_of(b, y) == Cost(3 * 8 * 8 * 8, 0, 0)


def test_other_operators_cost_what_their_constants_hold() -> None:
    b = Builder()
    x = b.batchnorm("input", 3, at="/bn")
    y = b.node("Pad", b.node("Mul", x, b.const(b.normal(3, 1, 1))), b.const([0] * 8))
    table = costs(Model(b.model(y, IMAGE)))
    assert table == {
        "/bn/BatchNormalization": Cost(0, 12, 48),
        "/Mul": Cost(0, 3, 12),
        "/Pad": Cost(0, 0, 0),  # integers are no parameters
    }


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_costs_are_those_of_one_image(batch: int | str) -> None:
    b = Builder()
    y = b.gemm(b.node("Flatten", b.conv("input", 3, 5)), 320, 10)
    assert total(Model(b.model(y, (batch, 3, 8, 8)))).macs == 5 * 64 * 27 + 3200


def test_costs_follow_the_input_size_that_is_asked_for() -> None:
    b = Builder()
    model = Model(b.model(b.conv("input", 3, 5), ("N", 3, "H", "W")))
    assert total(model, {"input": (1, 3, 4, 6)}).macs == 5 * 24 * 27
    assert total(model, {"input": (8, 3, 4, 6)}).macs == 5 * 24 * 27


def test_a_shared_initializer_counts_once_and_its_macs_twice() -> None:
    b = Builder()
    weight = b.const(b.normal(3, 3, 3, 3), "w")
    x = b.node("Conv", "input", weight, pads=[1] * 4, at="/a")
    y = b.node("Conv", x, weight, pads=[1] * 4, at="/b")
    table = costs(Model(b.model(y, IMAGE)))
    assert table == {"/a/Conv": Cost(3 * 64 * 27, 81, 324), "/b/Conv": Cost(3 * 64 * 27, 0, 0)}
    assert total(Model(b.model(y, IMAGE))) == Cost(2 * 3 * 64 * 27, 81, 324)


@pytest.mark.parametrize(("kind", "width"), [("float16", 2), ("float", 4), ("double", 8), ("bfloat16", 2)])
def test_bytes_are_those_of_the_element_type(kind: str, width: int) -> None:
    proto = parsed(
        f"""<ir_version: 10, opset_import: ["" : 22]>
        g ({kind}[1,3,8,8] x) => ({kind}[1,5,8,8] y)
        <{kind}[5,3,1,1] w = {{{", ".join(["1"] * 15)}}}> {{ c = Conv(x, w)  y = Relu(c) }}"""
    )
    assert total(Model(proto)) == Cost(5 * 64 * 3, 15, 15 * width)


def test_quantised_weights_are_parameters_and_their_scales_are_not() -> None:
    b = Builder()
    q = b.const(np.ones((5, 3, 1, 1), np.int8))
    y = b.node("Conv", "input", b.node("DequantizeLinear", q, b.const(np.float32(0.1))))
    assert total(Model(b.model(y, IMAGE))) == Cost(5 * 64 * 3, 15, 15)


def test_what_a_custom_operator_hides_costs_nothing() -> None:
    b = Builder()
    y = b.conv(b.node("Swirl", "input", domain="com.example"), 3, 5, at="/c")
    assert costs(Model(b.model({y: [1, 5, 8, 8]}, IMAGE)))["/c/Conv"].macs == 0


def test_costs_add_up() -> None:
    assert Cost(1, 2, 8) + Cost(10, 20, 80) == Cost(11, 22, 88)
    assert total(Model(helper.make_model(empty()))) == Cost()


def empty():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Relu", ["x"], ["x2"])], "g", [value], [])


def test_nodes_without_names_are_not_lost() -> None:
    proto = resnet((1,), (4,))
    expected = total(Model(proto))
    for node in proto.graph.node:
        node.ClearField("name")
    assert costs(Model(proto)) == {"": expected}


def test_a_resnet_costs_what_its_architecture_says() -> None:
    stem, stage1 = 8 * 256 * 27, 2 * 8 * 256 * 72
    stage2 = 16 * 64 * (72 + 144)
    expected = stem + stage1 + stage2 + 16 * 10
    parameters = 8 * 27 + 8 + 2 * (8 * 72 + 8) + 16 * 72 + 16 + 16 * 144 + 16 + 170
    for form in ({}, {"batchnorm": "nodes", "weights": "constants"}, {"head": "reducemean_matmul_add"}):
        proto = resnet((1, 1), (8, 16), size=16, **form)
        assert total(normalise(proto)) == Cost(expected, parameters, 4 * parameters)


def test_weights_inside_an_if_are_parameters() -> None:
    b, x = Builder(), "input"
    then, otherwise = (Builder(), Builder())
    graphs = [
        helper.make_graph(i.nodes, "branch", [], [helper.make_empty_tensor_value_info(y)], i.initializers)
        for i, y in ((then, then.conv(x, 3, 4, at="then")), (otherwise, otherwise.node("Relu", x)))
    ]
    flag = b.node("Greater", b.node("ReduceMean", x, keepdims=0), b.const(np.float32(0)))
    proto = b.model({b.node("If", flag, then_branch=graphs[0], else_branch=graphs[1]): ["N", 4, 8, 8]}, check=False)
    assert total(Model(proto), {"input": IMAGE}).parameters == 4 * 27 + 4 + 1


@pytest.mark.parametrize("batch", [1, 4])
def test_activations_are_those_of_all_nodes_for_one_image(batch: int) -> None:
    b = Builder()
    y = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.conv("input", 3, 5))))
    model = Model(b.model(y, ("N", 3, 8, 8)))
    assert activation_bytes(model, {"input": (batch, 3, 8, 8)}) == 4 * (5 * 64 + 5 * 64 + 5 + 5)
