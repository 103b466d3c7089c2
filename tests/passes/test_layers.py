"""Convs and Gemms as linear maps: read, written and replaced without a change of what they compute."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper
from zoo import Builder, assert_same, images, parsed, resnet, run

from passes.core.errors import ModelError
from passes.graph.layers import (
    OPERATORS,
    Geometry,
    Layer,
    chain_nodes,
    layer_of,
    replace_by_chain,
    why_not_a_layer,
    write_layer,
)
from passes.graph.model import Model
from passes.graph.shapes import infer_shapes

IMAGE = (2, 3, 8, 9)


def node_of(model: Model) -> gs.Node:
    """The last layer."""
    return next(n for n in reversed(model.graph.nodes) if n.op in OPERATORS)


def read(model: Model) -> Layer:
    shapes = infer_shapes(model)
    assert why_not_a_layer(node_of(model), shapes) is None
    return layer_of(node_of(model), shapes)


def rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its last Conv or Gemm built anew from what `layer_of` reads."""
    model = Model(proto)
    layer = read(model)
    replace_by_chain(model.graph, node_of(model), [(layer.geometry, layer.weight)], layer.bias)
    done = model.finished()
    onnx.checker.check_model(done, full_check=True)
    return done


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Gemm


def gemm(bias: tuple[int, ...] | None = (5,), **attributes: float) -> onnx.ModelProto:
    b = Builder()
    weight = b.const(b.normal(*((5, 12) if attributes.get("transB") else (12, 5))), "w")
    read = ["input", weight] + ([] if bias is None else [b.const(b.normal(*bias), "b")])
    return b.model(b.node("Gemm", *read, at="/fc", **attributes), ("N", 12))


GEMMS = [
    {"bias": bias, **attributes}
    for bias, attributes in product(
        [None, (5,), (1, 5)],
        [{}, {"transB": 1}, {"alpha": 0.5}, {"beta": -2.0}, {"alpha": 0.25, "beta": 0.0, "transB": 1}],
    )
]


@pytest.mark.parametrize("form", GEMMS, ids=str)
def test_a_gemm_is_a_weight_and_a_bias_whatever_its_attributes(form: dict) -> None:
    proto = gemm(**form)
    layer = read(Model(proto))
    assert layer.geometry == Geometry(12, 5)
    assert (layer.weight.dtype, layer.bias.dtype) == (np.float64, np.float64)
    assert (layer.name, layer.input, layer.output) == ("/fc/Gemm", "input", "/fc/Gemm_output_0")
    x = normal(3, 12)
    (expected,) = run(proto, x)
    assert_same([(x @ layer.weight.T + layer.bias).astype(np.float32)], [expected])
    assert_same(run(rewritten(proto), x), [expected])


@pytest.mark.parametrize("form", GEMMS, ids=str)
def test_what_is_read_from_a_gemm_can_be_written_back(form: dict) -> None:
    proto = gemm(**form)
    model = Model(proto)
    layer = read(model)
    write_layer(model.graph, node_of(model), layer.weight, layer.bias)
    assert not {"alpha", "beta"} & node_of(model).attrs.keys()
    assert node_of(model).attrs.get("transB", 0) == form.get("transB", 0)
    assert_same(run(model.finished(), normal(3, 12)), run(proto, normal(3, 12)))


# Conv

CONVS = {
    "plain": ((4, 3, 3, 3), {}),
    "kernel alone": ((4, 3, 5, 2), {"kernel_shape": [5, 2]}),
    "uneven": ((4, 3, 5, 2), {"strides": [2, 3], "pads": [2, 0, 1, 1], "dilations": [1, 2]}),
    "grouped": ((6, 1, 3, 3), {"group": 3, "pads": [1] * 4}),
    "1x1, strided": ((4, 3, 1, 1), {"strides": [2, 2]}),
    "VALID": ((4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "NOTSET": ((4, 3, 3, 3), {"auto_pad": "NOTSET", "pads": [1, 0, 2, 1]}),
}


def conv(weight: tuple[int, ...], image: tuple, bias: bool = True, **attributes) -> onnx.ModelProto:
    b = Builder()
    extra = [b.const(b.normal(weight[0]), "b")] if bias else []
    return b.model(b.node("Conv", "input", b.const(b.normal(*weight), "w"), *extra, at="/c", **attributes), image)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("weight", "attributes"), CONVS.values(), ids=CONVS)
def test_a_conv_built_from_its_geometry_is_the_same(weight: tuple, attributes: dict, bias: bool) -> None:
    proto = conv(weight, IMAGE, bias, **attributes)
    layer = read(Model(proto))
    assert layer.geometry.weight_shape == layer.weight.shape == weight
    assert layer.bias.any() == bias
    assert_same(run(rewritten(proto), normal(*IMAGE)), run(proto, normal(*IMAGE)))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [*product([1, 2, 3, 4], [1, 2, 3])])
def test_automatic_pads_are_those_of_onnxruntime(mode: str, size: int, kernel: int, stride: int) -> None:
    proto = conv((4, 3, kernel, 3), (1, 3, size, 8), auto_pad=mode, strides=[stride, 2])
    done = rewritten(proto)
    assert "auto_pad" not in {a.name for a in done.graph.node[0].attribute}
    x = normal(1, 3, size, 8)
    assert_same(run(done, x), run(proto, x))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_pads_on_one_and_three_axes(mode: str) -> None:
    line = conv((4, 3, 4), (1, 3, 9), auto_pad=mode, strides=[2])
    assert_same(run(rewritten(line), normal(1, 3, 9)), run(line, normal(1, 3, 9)))
    volume = conv((4, 3, 2, 3, 4), (1, 3, 5, 6, 7), auto_pad=mode, strides=[1, 2, 2])
    assert_same(run(rewritten(volume), normal(1, 3, 5, 6, 7)), run(volume, normal(1, 3, 5, 6, 7)))


def test_automatic_pads_of_dilated_kernels() -> None:
    """By the formula of the ONNX standard: onnxruntime refuses them."""
    model = Model(conv((4, 3, 3, 3), (1, 3, 9, 8), auto_pad="SAME_UPPER", strides=[1, 2], dilations=[2, 3]))
    assert read(model).geometry.pads == (2, 2, 2, 3)
    assert read(model).geometry.output_size((9, 8)) == (9, 4)


@pytest.mark.parametrize(("weight", "attributes"), CONVS.values(), ids=CONVS)
def test_a_geometry_knows_its_output_size_and_cost(weight: tuple, attributes: dict) -> None:
    model = Model(conv(weight, IMAGE, **attributes))
    geometry, y = read(model).geometry, infer_shapes(model)["/c/Conv_output_0"]
    assert geometry.output_size(IMAGE[2:]) == y[2:]
    assert geometry.parameters == np.prod(weight)
    assert geometry.features == np.prod(weight[1:])
    assert geometry.macs(IMAGE[2:]) == np.prod(y[1:]) * np.prod(weight[1:])


# Writing


def test_writing_keeps_the_names_of_initializers_that_nothing_else_reads() -> None:
    model = Model(conv((4, 3, 3, 3), IMAGE))
    layer = read(model)
    write_layer(model.graph, node_of(model), layer.weight * 2, layer.bias * 2)
    done = model.finished()
    assert sorted(t.name for t in done.graph.initializer) == ["b", "w"]
    assert_same(run(done, normal(*IMAGE)), [2 * run(conv((4, 3, 3, 3), IMAGE), normal(*IMAGE))[0]])


@pytest.mark.parametrize("empty", [False, True])
def test_writing_adds_a_bias_where_there_was_none(empty: bool) -> None:
    b = Builder()
    y = b.node("Conv", "input", b.const(b.normal(4, 3, 3, 3)), *([""] if empty else []))
    model = Model(b.model(y, IMAGE))
    expected = run(model.finished(), normal(*IMAGE))[0] + np.arange(4, dtype=np.float32)[:, None, None]
    write_layer(model.graph, node_of(model), read(model).weight, np.arange(4))
    assert_same(run(model.finished(), normal(*IMAGE)), [expected])


def test_writing_can_change_the_number_of_channels() -> None:
    b = Builder()
    x = b.conv("input", 3, 6, at="/a")
    model = Model(b.model(b.conv(x, 6, 4, at="/b")))
    first, second = model.graph.nodes
    shapes = infer_shapes(model)
    a, c = layer_of(first, shapes), layer_of(second, shapes)
    write_layer(model.graph, first, a.weight[:5], a.bias[:5])
    write_layer(model.graph, second, c.weight[:, :5], c.bias)
    done = model.finished()
    assert [list(t.dims) for t in done.graph.initializer] == [[5, 3, 3, 3], [5], [4, 5, 3, 3], [4]]
    run(done, images(1, 8))


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_shared_initializer_stays_as_it_is_for_its_other_reader(op: str) -> None:
    b = Builder()
    weight = b.const(b.normal(3, 3, *([3, 3] if op == "Conv" else [])), "shared.w")
    bias, attributes = b.const(b.normal(3), "shared.b"), {"pads": [1] * 4} if op == "Conv" else {"transB": 1}
    x = b.node(op, "input", weight, bias, at="/first", **attributes)
    image = (2, 3, 8, 8) if op == "Conv" else (2, 3)
    model = Model(b.model(b.node(op, x, weight, bias, at="/second", **attributes), image))
    expected = run(model.finished(), {"input": run_first(b, x, image, normal(*image))})
    layer = read(model)
    write_layer(model.graph, node_of(model), layer.weight * 0, layer.bias * 0)
    done = model.finished()
    assert [len(done.graph.initializer), done.graph.node[0].input[1]] == [4, "shared.w"]
    assert done.graph.node[1].input[1:] == [f"/second/{op}:weight", f"/second/{op}:bias"]
    assert not run(done, normal(*image))[0].any()
    again = read(model)
    write_layer(model.graph, node_of(model), layer.weight, layer.bias)
    assert again.weight.shape == layer.weight.shape
    twice = run(model.finished(), {"input": run_first(b, x, image, normal(*image))})
    assert_same(twice, expected)


def run_first(b: Builder, x: str, image: tuple, feeds: np.ndarray) -> np.ndarray:
    """The value of the first of two nodes."""
    kept = b.nodes
    b.nodes = kept[:1]
    (value,) = run(b.model(x, image), feeds)
    b.nodes = kept
    return value


@pytest.mark.parametrize(("op", "kind"), [("Conv", np.float16), ("Gemm", np.float16), ("Gemm", np.float64)])
def test_weights_keep_their_precision(op: str, kind: type) -> None:
    name = {np.float16: "float16", np.float64: "double"}[kind]
    shapes = ("N,3,8,8", "N,4,6,6") if op == "Conv" else ("N,12", "N,4")
    weight = normal(4, 3, 3, 3) if op == "Conv" else normal(12, 4)
    proto = parsed(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({name}[{shapes[0]}] input) => ({name}[{shapes[1]}] y) {{ y = {op}(input, w, b) }}""",
        w=(weight / 5).astype(kind),
        b=normal(4).astype(kind),
    )
    x = normal(2, *((3, 8, 8) if op == "Conv" else (12,))).astype(kind)
    tolerance = 3e-3 if kind is np.float16 else 1e-12
    assert_same(run(rewritten(proto), x), run(proto, x), tolerance)
    model = Model(proto)
    layer = read(model)
    assert layer.weight.dtype == np.float64
    write_layer(model.graph, node_of(model), layer.weight, layer.bias)
    done = model.finished()
    assert {t.data_type for t in done.graph.initializer} == {proto.graph.initializer[0].data_type}
    assert_same(run(done, x), run(proto, x), tolerance)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [{}, {"pads": [1, 0, 0, 1], "output_padding": [1, 0]}, {"dilations": [2, 1], "strides": [1, 3]}],
    ids=["plain", "pads", "dilations"],
)
def test_a_conv_transpose_is_read_written_and_rebuilt(attributes: dict, bias: bool) -> None:
    b = Builder()
    read_ = ["input", b.const(b.normal(3, 4, 3, 2), "w"), *([b.const(b.normal(4), "b")] if bias else [])]
    proto = b.model(b.node("ConvTranspose", *read_, **{"strides": [2, 2], **attributes}), IMAGE)
    x = np.random.default_rng(0).normal(size=IMAGE).astype(np.float32)
    (expected,) = run(proto, x)
    layer = read(Model(proto))
    assert layer.geometry.weight_shape == layer.values.shape == (4, 3, 3, 2)
    assert layer.geometry.output_size(IMAGE[2:]) == expected.shape[2:]
    assert_same(run(rewritten(proto), x), [expected])
    model = Model(proto)
    write_layer(model.graph, node_of(model), 2 * layer.weight, 2 * layer.bias)
    done = model.finished()
    assert "w" in {t.name for t in done.graph.initializer}
    assert_same(run(done, x), [2 * expected])


# Chains


def test_a_chain_stands_where_its_node_stood() -> None:
    model = Model(resnet((1,), (4,)))
    node = next(n for n in model.graph.nodes if n.name == "/layer1.0.conv1/Conv")
    position, ends = model.graph.nodes.index(node), (node.inputs[0].name, node.outputs[0].name)
    layer = layer_of(node, infer_shapes(model))
    ones = Geometry(4, 4, (1, 1), (1, 1), (0,) * 4, (1, 1))
    eye = np.eye(4)[:, :, None, None]
    new = replace_by_chain(model.graph, node, [(ones, eye), (layer.geometry, layer.weight), (ones, eye)], layer.bias)
    assert [n.name for n in new] == [f"/layer1.0.conv1/Conv/{i}" for i in range(3)]
    assert [len(n.inputs) for n in new] == [2, 2, 3]  # the bias is the last one's
    assert all(a is b for a, b in zip(model.graph.nodes[position : position + 3], new, strict=True))
    assert (new[0].inputs[0].name, new[-1].outputs[0].name) == ends
    done = model.finished()
    assert not {"layer1.0.conv1.weight", "layer1.0.conv1.bias"} & {t.name for t in done.graph.initializer}
    assert_same(run(done, images()), run(resnet((1,), (4,)), images()))


def test_a_chain_before_it_is_attached_leaves_the_graph_alone() -> None:
    model = Model(conv((4, 3, 3, 3), IMAGE))
    before, layer = model.digest(), read(model)
    nodes = chain_nodes(model.graph, node_of(model), [(layer.geometry, layer.weight)], layer.bias)
    assert [n.op for n in nodes] == ["Conv"]
    assert model.digest() == before


@pytest.mark.parametrize("chain", [False, True], ids=["new values", "a chain"])
def test_nodes_of_one_weight_get_one_initializer_and_one_for_equal_biases(chain: bool) -> None:
    b = Builder()
    weight, one, other = b.const(b.normal(4, 3, 3, 3), "w"), b.const(b.normal(4), "b"), b.const(b.normal(4), "b")
    proto = b.model(b.node("Sum", *(b.node("Conv", "input", weight, bias) for bias in (one, other, one))))
    model = Model(proto)
    first, *others = model.graph.nodes[:3]
    layer = layer_of(first, model.shapes)
    also = [(node, layer_of(node, model.shapes).bias) for node in others]
    if chain:
        ones = Geometry(3, 3, (1, 1), (1, 1), (0,) * 4, (1, 1))
        links = [(ones, np.eye(3)[..., None, None]), (layer.geometry, layer.weight)]
        replace_by_chain(model.graph, first, links, layer.bias, also)
    else:
        write_layer(model.graph, first, layer.weight, layer.bias, also)
    done = model.finished()
    assert len(done.graph.initializer) == 3 + chain
    assert_same(run(done, images(2, 8)), run(proto, images(2, 8)))


def test_a_chain_leaves_a_shared_weight_to_its_other_reader() -> None:
    b = Builder()
    weight = b.const(b.normal(3, 3, 3, 3), "shared")
    y = b.node("Conv", b.node("Conv", "input", weight, pads=[1] * 4), weight, pads=[1] * 4)
    proto = b.model(y)
    done = rewritten(proto)
    assert "shared" in {t.name for t in done.graph.initializer}
    assert_same(run(done, images(2, 8)), run(proto, images(2, 8)))


def test_a_node_of_another_graph_is_refused() -> None:
    model, other = Model(resnet((1,), (4,))), Model(resnet((1,), (4,)))
    layer = layer_of(other.graph.nodes[0], infer_shapes(other))
    with pytest.raises(ModelError, match="node '/conv1/Conv' is not in the graph"):
        replace_by_chain(model.graph, other.graph.nodes[0], [(layer.geometry, layer.weight)], layer.bias)


# What is no layer


def reason(y: str, b: Builder, image: tuple | dict = IMAGE) -> str | None:
    model = Model(b.model(y, image))
    return sentence(model)


def sentence(model: Model) -> str | None:
    """Why the layer of a model is declined, by its own name."""
    declined = why_not_a_layer(node_of(model), infer_shapes(model))
    assert declined is None or declined.node == node_of(model).name
    return None if declined is None else declined.reason


def test_plain_layers_have_no_objection() -> None:
    b = Builder()
    assert reason(b.gemm(b.node("Flatten", b.conv("input", 3, 4)), 4 * 72, 5), b) is None
    b = Builder()
    assert reason(b.node("Conv", "input", b.const(b.normal(4, 3, 1, 1)), ""), b) is None
    b = Builder()
    y = b.node("Conv", "input", b.const(b.normal(4, 3, 3, 3)), auto_pad="VALID")
    assert reason(y, b, ("N", 3, "H", "W")) is None


def test_computed_weights() -> None:
    b = Builder()
    weight = b.node("Mul", b.const(b.normal(4, 3, 1, 1)), b.node("ReduceMean", "input", keepdims=0))
    assert reason(b.node("Conv", "input", weight), b) == "its weights are computed, not constant"
    b = Builder()
    assert reason(b.node("Conv", "input", "w"), b, {"input": IMAGE, "w": (4, 3, 1, 1)}) == (
        "its weights are computed, not constant"
    )
    b = Builder()
    bias = b.node("ReduceMean", "input", axes=[0, 2, 3], keepdims=0)
    assert reason(b.node("Conv", "input", b.const(b.normal(3, 3, 1, 1)), bias), b) == (
        "its weights are computed, not constant"
    )


def test_quantised_weights() -> None:
    b = Builder()
    weight = b.node("DequantizeLinear", b.const(np.ones((4, 3, 1, 1), np.int8)), b.const(np.float32(0.1)))
    assert reason(b.node("Conv", "input", weight), b) == "its weights are computed, not constant"


def test_weights_that_are_no_numbers_of_a_network() -> None:
    kind = TensorProto.INT32
    value = helper.make_tensor_value_info("input", kind, [2, 3])
    node = helper.make_node("Gemm", ["input", "w"], ["y"], name="/fc")
    weight = helper.make_tensor("w", kind, [3, 4], [1] * 12)
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", kind, [2, 4])], [weight])
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert sentence(model) == "its weights are int32, not float16, bfloat16, float32 or float64"


def test_a_transposed_input() -> None:
    b = Builder()
    y = b.node("Gemm", "input", b.const(b.normal(2, 5)), transA=1)
    assert reason(y, b, (2, 12)) == "its input is transposed (transA = 1)"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_bias_that_is_one_value_for_all_outputs(shape: tuple[int, ...], beta: float) -> None:
    b = Builder()
    y = b.node("Gemm", "input", b.const(b.normal(12, 5)), b.const(np.full(shape, 3, np.float32)), beta=beta)
    model = Model(b.model(y, (7, 12)))
    assert why_not_a_layer(node_of(model), infer_shapes(model)) is None
    np.testing.assert_array_equal(read(model).bias, np.full(5, 3 * beta))


@pytest.mark.parametrize("shape", [(7, 1), (7, 5)])
def test_a_bias_that_is_not_one_value_an_output(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = b.node("Gemm", "input", b.const(b.normal(12, 5)), b.const(np.ones(shape, np.float32)))
    assert reason(y, b, (7, 12)) == f"its bias has shape {shape}, not one value an output"


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_pads_of_an_input_of_unknown_size(mode: str) -> None:
    expected = "it has auto_pad and the size of its input is not known"
    b = Builder()
    assert reason(b.node("Conv", "input", b.const(b.normal(4, 3, 3, 3)), auto_pad=mode), b, (1, 3, "H", 8)) == expected
    b = Builder()
    x = b.node("Swirl", "input", domain="com.example")
    y = b.node("Conv", x, b.const(b.normal(4, 3, 3, 3)), auto_pad=mode)
    model = Model(b.model({y: [1, 4, 8, 8]}, IMAGE))
    assert sentence(model) == expected


def test_a_conv_transpose_of_groups_or_of_pads_that_follow_from_sizes() -> None:
    for attributes, expected in (
        ({"group": 3}, "it is a grouped ConvTranspose"),
        ({"auto_pad": "SAME_UPPER"}, "its pads follow from the size of its input (auto_pad or output_shape)"),
        ({"output_shape": [16, 18]}, "its pads follow from the size of its input (auto_pad or output_shape)"),
        ({"auto_pad": "VALID"}, None),
    ):
        b = Builder()
        y = b.node("ConvTranspose", "input", b.const(b.normal(3, 4, 2, 2)), strides=[2, 2], **attributes)
        assert reason(y, b) == expected


def test_a_custom_domain() -> None:
    b = Builder()
    y = b.node("Conv", "input", b.const(b.normal(4, 3, 3, 3)), domain="com.example")
    model = Model(b.model({y: [2, 4, 8, 9]}, IMAGE))
    assert sentence(model) == "it is an operator of the custom domain 'com.example'"
