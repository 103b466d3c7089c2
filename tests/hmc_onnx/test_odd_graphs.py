"""What graphs from the wild have and tidy ones have not: each oddity in a tiny network, through the whole main job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from zoo import Builder, assert_same, run

import hmc_onnx
from calib.runtime.observing import observe
from calib.runtime.sessions import Session
from hmc_onnx.analysis.model_inputs import signature
from hmc_onnx.records.provenance import PREFIX
from passes.core.errors import HmcError, ModelError
from passes.graph.cost import total
from passes.graph.files import save
from passes.graph.sparse import densify
from passes.normal_form.normalise import normalise

pytestmark = pytest.mark.usefixtures("few_iterations")

SETTINGS = hmc_onnx.Settings(samples=16, kl_samples=16, positions=8, align=2, chunk=16, provider="cpu", threads=1)
Feeds = dict[str, np.ndarray]
Part = Callable[[Builder, str], str]
Axes = tuple[int | str | None, ...]
PADS = {"pads": [1] * 4}
Check = Callable[[ModelProto, ModelProto, Feeds], None]
info = helper.make_tensor_value_info


@dataclass(frozen=True)
class Row:
    build: Callable[[], ModelProto]
    check: Check | None = None  # what is particular to it, given the original, the result and calibration feeds
    refused: str = ""  # what the message says where the model is declined
    strategy: str = "hmc"
    every: bool = False  # offer all candidates, and not a few
    beside: bool = False  # put the weights into a file beside the model, and give its path


ROWS: dict[str, Row] = {}


def add(name: str, build: Callable[..., ModelProto], *args: Any, **options: Any) -> None:
    """Put a model into the table; options that are not of `Row` go to what builds it."""
    own = {k: options.pop(k) for k in list(options) if k in Row.__dataclass_fields__}
    assert name not in ROWS
    ROWS[name] = Row(partial(build, *args, **options), **own)


def middle(name: str, **options: Any) -> Callable[[Part], None]:
    """Put nodes between the two blocks of a net, and that into the table."""
    return lambda part: add(name, net, part, **options)


def block(b: Builder, x: str, at: str, kernel: int | tuple[int, ...] = 3) -> str:
    y = b.conv(b.node("Relu", b.conv(x, 8, 8, kernel, at=f"{at}.conv1"), at=at), 8, 8, kernel, at=f"{at}.conv2")
    return b.node("Relu", b.node("Add", y, x, at=at), at=at)


def net(
    part: Part = lambda b, x: x,
    front: Part = lambda b, x: x,
    back: Part = lambda b, x: x,
    *,
    kernel: int | tuple[int, ...] = 3,
    head: bool = True,
    shape: Axes | None = None,
    builder: Callable[[], Builder] = Builder,
    **model: Any,
) -> ModelProto:
    """Two residual blocks of 8 channels, with `part` between them, `front` before and `back` behind all.

    Without `head` there are no pool and no Gemm. `shape` is the output's, where inference cannot know it.
    """
    b = builder()
    x = b.node("Relu", b.conv(front(b, "input"), 3, 8, kernel, at="stem"), at="stem")
    x = block(b, part(b, block(b, x, "one", kernel)), "two", kernel)
    back(b, b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 5) if head else x)
    b.nodes[-1].output[0] = "logits"
    return b.model({"logits": shape} if shape else "logits", **model)


def rewired(*convs: str, index: int, to: str) -> ModelProto:
    """The net with another tensor as an input of some Convs."""
    proto = net()
    for node in proto.graph.node:
        if node.name.removesuffix("/Conv") in convs:
            node.input[index] = to
    return proto


def returning(name: str, *shape: int | str, kind: int = TensorProto.FLOAT, **parts: Any) -> ModelProto:
    """The net with one more output."""
    proto = net(**parts)
    proto.graph.output.append(info(name, kind, shape))
    return proto


def number(b: Builder, value: Any, dtype: type = np.float32) -> str:
    return b.const(np.array(value, dtype), "number")


def weight(b: Builder, *shape: int) -> str:
    return b.const(b.normal(*(shape or (8, 8, 3, 3)), scale=0.1), "weight")


# What is particular to some rows


def same_second_output(original: ModelProto, result: ModelProto, feeds: Feeds) -> None:
    assert_same(run(result, feeds)[1:], run(original, feeds)[1:], 0)


def changes_are_felt(original: ModelProto, _: ModelProto, feeds: Feeds) -> None:
    layers = hmc_onnx.profile(original, feeds, SETTINGS).layers
    assert any(choice.sensitivity > 0 for layer in layers for choice in layer.choices if choice.measured)


def nothing_dead(_: ModelProto, result: ModelProto, __: Feeds) -> None:
    assert not [n.name for n in result.graph.node if n.name.startswith("dead")]
    assert {t.name for t in result.graph.initializer} <= {i for n in result.graph.node for i in n.input}


def inputs_follow_initializers(_: ModelProto, result: ModelProto, feeds: Feeds) -> None:
    shapes = {t.name: list(t.dims) for t in result.graph.initializer}
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.graph.input}
    assert set(declared) - set(shapes) == set(feeds)
    assert all(declared[n] == shapes[n] for n in set(declared) & set(shapes))
    assert result.ir_version > 3 or set(shapes) < set(declared)


def same_types(original: ModelProto, result: ModelProto, _: Feeds) -> None:
    wanted, found = ({t.data_type for t in m.graph.initializer if t.data_type != 7} for m in (original, result))
    assert found == wanted


def still_defined(_: ModelProto, result: ModelProto, __: Feeds) -> None:
    assert {f.name for f in result.functions} >= {n.op_type for n in result.graph.node if n.domain == "local"}


# Weights, inputs and outputs


def initializers_as_inputs(ir: int, opset: int) -> ModelProto:
    proto = net(builder=partial(Builder, opset=opset))
    proto.ir_version = ir
    proto.graph.input.extend(info(t.name, t.data_type, t.dims) for t in proto.graph.initializer)
    return proto


def replaced(change: Callable[[TensorProto, np.ndarray], TensorProto]) -> ModelProto:
    """The net with other initializers."""
    proto = net()
    for t in proto.graph.initializer:
        t.CopyFrom(change(t, numpy_helper.to_array(t)))
    return proto


def filled(value: float, name: str = "one.conv1") -> ModelProto:
    """One value for all weights of a layer."""
    return replaced(lambda t, v: numpy_helper.from_array(v * 0 + value, t.name) if t.name.startswith(name) else t)


def same(b: Builder, x: str) -> str:
    return b.node("Identity", x, at="same")


def aside(node: Part) -> Part:
    """Nodes beside the net."""
    return lambda b, x: (node(b, x), x)[1]


add("a weight shared by two Convs", rewired, "two.conv2", index=1, to="two.conv1.weight")
add("a weight shared across blocks", rewired, "one.conv2", "two.conv1", index=1, to="one.conv1.weight")
add("a bias shared by three Convs", rewired, "one.conv2", "two.conv1", index=2, to="one.conv1.bias")
add("initializers that are inputs, IR version 3", initializers_as_inputs, 3, 8, check=inputs_follow_initializers)
add("initializers that are inputs, IR version 8", initializers_as_inputs, 8, 17, check=inputs_follow_initializers)
add("weights in Constant nodes", net, builder=partial(Builder, constants=True))
add("weights in a file beside", net, beside=True)
add("weights as numbers", replaced, lambda t, v: helper.make_tensor(t.name, t.data_type, t.dims, v.ravel().tolist()))
add("a Conv of zeros", filled, 0)
add("a Conv of NaN", filled, np.nan, refused="NaN")
add("a last layer of NaN", filled, np.nan, "fc", refused="NaN")
kernel = ("one.conv1.weight", 8, 8, 3, 3)
add("an initializer that is an output", returning, *kernel, check=same_second_output, strategy="prune")
add("a tensor inside that is an output", returning, "one/Relu_output_0", "N", 8, 8, 8)
add("a sum that is an output", returning, "one/Add_output_0", "N", 8, 8, 8)
add("a Conv that is an output", returning, "two.conv1/Conv_output_0", "N", 8, 8, 8)
add("an input that is an output", returning, "input", "N", 3, 8, 8, check=same_second_output)
add("an output by Identity", returning, "same/Identity_output_0", "N", 8, 8, 8, part=same)
half = aside(lambda b, x: b.node("Cast", x, at="b", to=10))
add("an output of float16", returning, "b/Cast_output_0", "N", 3, 8, 8, kind=10, front=half, check=same_second_output)
boxes = aside(lambda b, x: b.conv(block(b, x, "side"), 8, 4, 1, at="boxes"))
add("two heads", returning, "boxes/Conv_output_0", "N", 4, 8, 8, part=boxes)
add("the output is a Conv", net, back=lambda b, x: b.conv(x, 8, 5, 1, at="classes"), head=False)
add("the output is a class", net, back=lambda b, x: b.node("ArgMax", x, axis=1, keepdims=0), check=changes_are_felt)
add("an input that nothing reads", net, inputs={"input": ("N", 3, 8, 8), "spare": ("N", 2)})
each = {"input": ("N", 3, 8, 8), "number": ("N", 1, 1, 1)}
add("an image and a number for each", net, lambda b, x: b.node("Mul", x, "number"), inputs=each)
one = {"input": ("N", 3, 8, 8), "number": ()}
add("an image and one number", net, lambda b, x: b.node("Mul", x, "number"), inputs=one, refused="number")
middle("a Conv with two readers")(lambda b, x: b.node("Mul", y := b.conv(x, 8, 8, at="gate"), b.node("Sigmoid", y)))
middle("a sequence")(lambda b, x: b.node("SequenceAt", b.node("SequenceConstruct", x, x), number(b, 1, np.int64)))
middle("dead nodes", check=nothing_dead)(aside(lambda b, x: b.node("Relu", b.conv(x, 8, 8, at="dead"), at="dead")))
middle("dead initializers", check=nothing_dead)(aside(lambda b, x: weight(b)))
half_read = {"outputs": 2, "axis": 1}
middle("an output that nothing reads", strategy="prune")(
    lambda b, x: b.node("Split", b.conv(x, 8, 16, at="wide"), b.const([8, 8]), **half_read)
)
middle("a weight that Identities hand on")(
    lambda b, x: b.node("Conv", b.node("Conv", x, same(b, w := weight(b)), **PADS), same(b, w), **PADS)
)


@middle("an output left out")
def left_out(b: Builder, x: str) -> str:
    y = b.node("Dropout", b.conv(x, 8, 8, at="extra"), outputs=2)
    b.nodes[-1].output[1] = ""
    return y


@middle("inputs left out")
def inputs_left_out(b: Builder, x: str) -> str:
    y = b.conv(x, 8, 8, bias=False, at="extra")
    b.nodes[-1].input.append("")
    y = b.node("Clip", b.node("Clip", y, "", number(b, 6)), number(b, 0), "")
    return b.node("Resize", y, "", number(b, [1] * 4))


middle("weights stored as int8", refused="quantised")(
    lambda b, x: b.node(
        "Conv", x, b.node("DequantizeLinear", number(b, 99 * b.normal(8, 8, 3, 3), np.int8), number(b, 0.001)), **PADS
    )
)
middle("a computed weight")(
    lambda b, x: b.node("Conv", x, b.node("Add", weight(b), b.node("ReduceMean", x, axes=[0, 2, 3])), **PADS)
)


@middle("Constant nodes of every form")
def constants(b: Builder, x: str) -> str:
    x = b.node("Mul", b.conv(x, 8, 8, at="extra"), b.node("Constant", value_float=0.9))
    shift = b.node("Reshape", b.node("Constant", value_floats=[0.1] * 8), b.node("Constant", value_ints=[1, 8, 1, 1]))
    words = b.node("Size", b.node("Constant", value_strings=["a", "b"]))
    words = b.node("Add", words, b.node("Size", b.node("Constant", value_string="a")))
    shift = b.node("Mul", shift, b.node("Cast", words, to=TensorProto.FLOAT))
    batch = b.node("Gather", b.node("Shape", x), b.node("Constant", value_int=0))
    sizes = b.node("Constant", value=numpy_helper.from_array(np.array([8, 8, 8])))
    shape = b.node("Concat", b.node("Unsqueeze", batch, b.node("Constant", value_ints=[0])), sizes, axis=0)
    return b.node("Reshape", b.node("Add", x, shift), shape)


def sparse(name: str = "") -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([0.5, 1.5], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 4]), "places"), (1, 8, 1, 1))


def sparse_initializer() -> ModelProto:
    proto = net(lambda b, x: b.node("Add", x, number(b, [0])))
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "number"))
    proto.graph.sparse_initializer.append(sparse("number"))
    return proto


middle("a sparse Constant")(lambda b, x: b.node("Add", x, b.node("Constant", sparse_value=sparse())))
add("a sparse initializer", sparse_initializer)


# Names


def renamed(change: Callable[[str], str], nodes: Callable[[onnx.NodeProto], str] | None = None) -> ModelProto:
    """Every tensor and node, or the nodes otherwise."""
    proto = net()
    for node in proto.graph.node:
        node.name = nodes(node) if nodes else change(node.name)
        node.input[:], node.output[:] = map(change, node.input), map(change, node.output)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = change(value.name)
    return proto


add("names: slashes", renamed, lambda n: f"//{n}//")
add("names: colons", renamed, lambda n: f"{n}:0")
add("names: unicode", renamed, lambda n: f"層→{n}é\u200b")
add("names: spaces and a new line", renamed, lambda n: f" {n} \n")
add("names: brackets and quotes", renamed, lambda n: f"[{n}]{{0}}('%s\"<b>)")
add("names: thousands of letters", renamed, lambda n: "x" * 3000 + n)
add("names: paths", renamed, lambda n: f"../{n}\\..")
add("names: numbers", renamed, lambda n: str(sum(ord(c) * 31**i for i, c in enumerate(n))))
add("names: none for the nodes", renamed, str, lambda _: "")
add("names: nodes as their last input", renamed, str, lambda node: node.input[-1])
add("names: twice the same", renamed, str, lambda node: node.op_type, refused="same node name")  # by onnxruntime


@middle("names: those of a decomposed layer's parts", strategy="lowrank", every=True)
def taken(b: Builder, x: str) -> str:
    for layer in ("one.conv2", "two.conv1", "two.conv2"):
        for i, part in enumerate(("/0:output", "/1:output", "/0:weight", "/2:bias", ":weight", ":bias", "/0", "/1")):
            y, scale = f"{layer}/Conv{part}", b.const(np.float32(0.9 + i / 50), f"{layer}{part}")
            b.nodes.append(helper.make_node("Mul", [x, scale], [y], f"{layer}/Conv/{i}"))
            x = y
    return x


# Recorded shapes and axes


def recorded(
    edit: Callable[[Any], Any] = lambda _: None, every: int = 1, more: Sequence[ValueInfoProto] = ()
) -> ModelProto:
    """The net with value_info."""
    proto = net()
    infos = onnx.shape_inference.infer_shapes(proto).graph.value_info
    for value in infos:
        edit(value.type.tensor_type)
    proto.graph.value_info.extend([*infos[::every], *more])
    return proto


def with_output(shape: Axes | None, **parts: Any) -> ModelProto:
    proto = net(**parts)
    proto.graph.output[0].CopyFrom(info("logits", TensorProto.FLOAT, shape))
    return proto


add("value_info of all tensors", recorded)
add("value_info of every other tensor", recorded, every=2)
add("value_info of a tensor that does not exist", recorded, more=[info("ghost", 1, (1, 2))])
add("value_info of a weight", recorded, more=[info("one.conv1.weight", 1, (8, 8, 3, 3))])
add("value_info of batch 1", recorded, lambda t: t.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=1)))
add("value_info without shapes", recorded, lambda t: t.ClearField("shape"))
add("batch by symbol", net, inputs=("batch_size", 3, 8, 8))
add("batch without a name", net, inputs=(None, 3, 8, 8))
add("batch of 1", net, inputs=(1, 3, 8, 8))
add("batch of 4", net, inputs=(4, 3, 8, 8))
add("batch of -1", with_output, (-1, 5), inputs=(-1, 3, 8, 8))
for n in (1, 4):
    fixed = partial(lambda n, b, x: b.node("Reshape", x, b.const([n, 8, 8, 8])), n)
    add(f"batch of {n} in a Reshape", net, fixed, inputs=(n, 3, 8, 8))
add("no shape on the output", with_output, None, refused="shape")
add("an output of unknown axes", with_output, ("a", "b"))
add("height and width by symbol", net, inputs=("N", 3, "H", "W"))
add("height and width without a name", net, inputs=(None, 3, None, None))
add("height and width by one symbol", net, inputs=("N", 3, "S", "S"))


# Opsets, domains and types


def loads(opset: int) -> bool:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1] x) => (float[1] y) {{ y = Relu(x) }}'
    with contextlib.suppress(ModelError):
        return bool(Session(onnx.parser.parse_model(text)).outputs)
    return False


def of_opset(opset: int) -> ModelProto:
    """Operators whose attributes have become inputs, each as the opset wants it."""
    b = Builder(opset=opset)

    def node(op: str, x: str, since: int, outputs: int = 1, keep: Any = (), **attributes: Any) -> str:
        if opset < since:
            return b.node(op, x, outputs=outputs, **attributes, **dict(keep))
        values = [number(b, v, np.float32 if isinstance(v, float) else np.int64) for v in attributes.values()]
        return b.node(op, x, *values, outputs=outputs, **dict(keep))

    x = b.conv("input", 3, 8, at="stem", bias=False)
    x = block(b, b.node("Relu", b.batchnorm(x, 8, at="stem", **({"spatial": 1} if opset < 9 else {}))), "one")
    x = node("Clip", node("Pad", x, 11, pads=[0, 0, 1, 1, 0, 0, 1, 1]), 11, min=0.0, max=6.0)
    x = node("Slice", x, 10, starts=[1, 1], ends=[9, 9], axes=[2, 3])
    scales = [1.0, 1.0, 2.0, 2.0]
    if opset < 10:
        x = b.node("Upsample", x, scales=scales) if opset < 9 else b.node("Upsample", x, number(b, scales))
    else:
        region = [] if opset < 11 else [number(b, []) if opset < 13 else ""]
        x = b.node("Resize", x, *region, number(b, scales))
    x = b.conv(b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 8, 16, at="wide")
    x = node("Split", x, 13, outputs=2, keep={"axis": 1}, split=[8, 8])
    x = node("Dropout", block(b, b.node("Add", x, b.nodes[-1].output[1]), "two"), 12, ratio=0.2)
    x = node("ReduceMean", x, 18, keep={"keepdims": 1}, axes=[2, 3])
    x = node("Unsqueeze", node("Squeeze", x, 13, axes=[2, 3]), 13, axes=[2])
    x = b.node("Cast", b.node("Cast", b.node("Flatten", x), to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    proto = b.model(b.node("Softmax", b.gemm(x, 8, 5), axis=1), check=False)
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    if proto.ir_version < 4:
        proto.graph.input.extend(info(t.name, t.data_type, t.dims) for t in proto.graph.initializer)
    return proto


def of_domain(domain: str, *more: str) -> ModelProto:
    proto = net()
    proto.opset_import[0].domain = domain
    proto.opset_import.extend(helper.make_opsetid(d, 2) for d in more)
    return proto


def of_type(dtype: type, **parts: Any) -> ModelProto:
    """All in another type; with parts that cast, the input and the output stay float32."""
    proto = net(check=False, **parts)
    for t in proto.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(dtype), t.name))
    for value in () if "front" in parts else (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return proto


def of_bytes() -> ModelProto:
    proto = net(front=lambda b, x: b.node("Mul", b.node("Cast", x, to=1), number(b, 0.01)))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return proto


for opset in range(7, 1 + next(v for v in range(onnx.defs.onnx_opset_version(), 0, -1) if loads(v))):
    add(f"opset {opset}", of_opset, opset)
add("imports that nothing uses", of_domain, "", "com.acme", "ai.onnx.ml")
add("the default domain spelt ai.onnx", of_domain, "ai.onnx")
ms = {"domain": "com.microsoft"}
relu = ms | PADS | {"activation": "Relu"}
middle("FusedConv of com.microsoft", shape=("N", 5))(lambda b, x: b.node("FusedConv", x, weight(b), **relu))
middle("Gelu of com.microsoft", shape=("N", 5))(lambda b, x: b.node("Gelu", b.conv(x, 8, 8, at="extra"), **ms))
narrow, wide = (partial(lambda to, b, x: b.node("Cast", x, to=to), kind) for kind in (10, 1))
add("float16", of_type, np.float16, check=same_types)
add("float16 inside", of_type, np.float16, front=narrow, back=wide, shape=("N", 5), check=same_types)
# onnxruntime has no Conv for these on CPU
add("float64", of_type, np.float64, check=same_types)
add("bfloat16", of_type, ml_dtypes.bfloat16, builder=partial(Builder, opset=22), check=same_types)
narrow, wide = (partial(lambda to, b, x: b.node("Cast", x, to=to), kind) for kind in (16, 1))
new = {"builder": partial(Builder, opset=22), "shape": ("N", 5)}
add("bfloat16 inside", of_type, ml_dtypes.bfloat16, front=narrow, back=wide, check=same_types, **new)
add("images of bytes", of_bytes)


# Graphs in graphs

SWISH = '<domain: "local", opset_import: ["" : 17]> Swish (x) => (y) { s = Sigmoid(x)  y = Mul(x, s) }'
BLOCK = """<domain: "local", opset_import: ["" : 17, "local" : 1]> Block (x, w) => (y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = local.Swish(a)  y = Add(b, x)
}"""


def functions(part: Part) -> ModelProto:
    proto = net(part, shape=("N", 5), check=False)
    proto.functions.extend(onnx.parser.parse_function(text) for text in (SWISH, BLOCK))
    return proto


def graph_of(b: Builder, *outputs: ValueInfoProto, inputs: Sequence[ValueInfoProto] = ()) -> onnx.GraphProto:
    return helper.make_graph(b.nodes, "inner", inputs, outputs, b.initializers)


def choice(b: Builder, x: str, then: Part, otherwise: Part) -> str:
    """An If by the mean."""
    condition = b.node("Greater", b.node("ReduceMean", x, keepdims=0), number(b, 0.1))
    inner = [Builder(seed) for seed in range(2)]
    graphs = [graph_of(i, ValueInfoProto(name=p(i, x))) for i, p in zip(inner, (then, otherwise), strict=True)]
    return b.node("If", condition, then_branch=graphs[0], else_branch=graphs[1])


@middle("an If whose branches hold Convs")
def if_of_convs(b: Builder, x: str) -> str:
    return choice(b, x, lambda i, x: i.conv(x, 8, 8, at="bright"), lambda i, x: i.conv(x, 8, 8, 1, at="dark"))


@middle("an If whose branches read weights around it", strategy="prune")
def if_of_outer_weights(b: Builder, x: str) -> str:
    w = weight(b)
    then, otherwise = (partial(lambda p, i, x: i.node("Conv", x, w, pads=p), p) for p in ([1] * 4, [0, 0, 2, 2]))
    return choice(b, b.node("Conv", x, w, pads=[1] * 4, at="outer"), then, otherwise)


@middle("a Loop around a Conv")
def loop(b: Builder, x: str) -> str:
    inner = Builder()
    on = inner.node("Identity", "going")
    y = inner.node("Relu", inner.conv("carried", 8, 8, at="body"))
    shape, flag = ("N", 8, 8, 8), TensorProto.BOOL
    inputs = [info("round", TensorProto.INT64, ()), info("going", flag, ()), info("carried", 1, shape)]
    body = graph_of(inner, info(on, flag, ()), info(y, 1, shape), inputs=inputs)
    return b.node("Loop", number(b, 2, np.int64), number(b, True, bool), x, body=body)


local = {"domain": "local"}
swish, around = lambda b, x: b.node("Swish", x, **local), lambda b, x: b.node("Block", x, weight(b), **local)
add("a local function", functions, swish, check=still_defined)
add("a local function around a Conv", functions, around, check=still_defined)


# Convs


def conv(kernel: int | tuple[int, int] = 3, drop: Sequence[str] = (), **attributes: Any) -> Part:
    """A Conv with the attributes, less those to drop."""

    def part(b: Builder, x: str) -> str:
        y = b.conv(x, 8, 8, kernel, at="odd", **attributes)
        kept = [a for a in b.nodes[-1].attribute if a.name not in drop]
        del b.nodes[-1].attribute[:]
        b.nodes[-1].attribute.extend(kept)
        return b.node("Relu", y)

    return part


middle("a depthwise Conv")(conv(group=8))
middle("a grouped Conv")(conv(group=2))
middle("auto_pad SAME_UPPER")(conv(auto_pad="SAME_UPPER", strides=[2, 2], drop=["pads"]))
middle("auto_pad SAME_LOWER")(conv((2, 4), auto_pad="SAME_LOWER", drop=["pads"]))
middle("auto_pad VALID")(conv(auto_pad="VALID", drop=["pads"]))
middle("no kernel_shape")(conv(drop=["kernel_shape"]))
middle("no attributes")(conv(drop=["kernel_shape", "pads", "group"]))
middle("pads that differ")(conv(pads=[0, 1, 2, 0]))
middle("dilation")(conv(dilations=[2, 2], pads=[2] * 4))
middle("dilation along one axis")(conv(dilations=[1, 3], pads=[1, 3, 1, 3]))
middle("a 1x1 Conv of stride 2")(conv(1, strides=[2, 2]))
middle("strides that differ")(conv(strides=[1, 2]))
middle("a kernel wider than the image")(conv((1, 9)))
middle("a transposed Conv")(lambda b, x: b.node("Relu", b.node("ConvTranspose", x, weight(b), **PADS)))
add("Convs of one axis", net, kernel=(3,), inputs=("N", 3, 32))
add("Convs of three axes", net, kernel=(3, 1, 3), inputs=("N", 3, 4, 4, 4))
first, last = (partial(lambda perm, b, x: b.node("Transpose", x, perm=perm), p) for p in ([0, 3, 1, 2], [0, 2, 3, 1]))
add("channels last outside", net, front=first, inputs=("N", 8, 8, 3))
middle("channels last inside")(
    lambda b, x: first(b, b.node("Add", last(b, b.conv(x, 8, 8, at="extra")), number(b, [0.1] * 8)))
)


# Files


@cache
def compressed() -> ModelProto:
    return hmc_onnx.compress(net(), feeds_of(net()), "macs=0.8", settings=SETTINGS).model


def texts() -> ModelProto:
    proto = net(producer_version="1", domain="org.acme", model_version=7, doc_string="a model")
    helper.set_model_props(proto, {"classes": "cat, dog", "": "", "a key": "ü" * 999})
    proto.graph.doc_string = proto.graph.input[0].doc_string = proto.graph.output[0].doc_string = "a text"
    proto.graph.name = "name with / and ü"
    for node in proto.graph.node:
        node.doc_string = f"File model.py, line 1, in {node.name}"
    return proto


add("a compressed model", compressed, every=True)
add("texts everywhere", texts)
add("no Conv", lambda: (b := Builder()).model(b.gemm(b.node("Flatten", "input"), 192, 5)), refused="no Conv")


# The job


def feeds_of(proto: ModelProto) -> Feeds:
    """Noise for every input; 8 for a size that is open."""
    rng = np.random.default_rng(0)
    feeds = {}
    for name, (dtype, shape) in signature(proto).items():
        values = rng.normal(size=(16, *(d or 8 for d in shape[1:])))
        feeds[name] = (np.abs(values * 99) if dtype.kind in "iu" else values).astype(dtype)
    return feeds


def outputs_at(proto: ModelProto, feeds: Feeds) -> list[list[np.ndarray]]:
    """All outputs, at each batch size that the model allows."""
    batch = next(iter(signature(proto).values()))[1][0] or -1
    session = Session(proto)
    batches = [batch] if batch > 0 else [1, 3, 16]
    return [session.run({name: values[:n] for name, values in feeds.items()}) for n in batches]


def check_valid(proto: ModelProto) -> None:
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def about(proto: ModelProto) -> dict[str, Any]:
    """All that a user may rely on, besides what is computed and what is said of how it was made."""
    defaults = {t.name for t in proto.graph.initializer}
    fields = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    return {name: getattr(proto, name) for name in fields} | {
        "graph": (proto.graph.name, proto.graph.doc_string),
        "inputs": [v for v in proto.graph.input if v.name not in defaults],
        "outputs": list(proto.graph.output),
        "imports": list(proto.opset_import),
        "properties": {p.key: p.value for p in proto.metadata_props if not p.key.startswith(PREFIX)},
    }


def macs(proto: ModelProto, feeds: Feeds) -> int:
    shapes = {name: (1, *values.shape[1:]) for name, values in feeds.items()}
    return total(observe(normalise(proto), shapes), shapes).macs


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.refused])
def test_the_original_is_sound(name: str) -> None:
    proto = ROWS[name].build()
    check_valid(densify(proto))  # of sparse initializers the checker only knows that there are some
    assert all(np.isfinite(o).all() for outputs in outputs_at(proto, feeds_of(proto)) for o in outputs)


@pytest.mark.parametrize("name", ROWS)
def test_an_odd_graph_is_compressed_or_declined(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    row = ROWS[name]
    original = row.build()
    model, before, feeds = original, original.SerializeToString(deterministic=True), feeds_of(original)
    if row.beside:
        model = tmp_path / "model.onnx"
        onnx.save(row.build(), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if not row.every:
        request.getfixturevalue("few_candidates")
    goal = hmc_onnx.Goal(target=hmc_onnx.Target(macs=0.6), strategy=row.strategy)
    compress = partial(hmc_onnx.compress, model, feeds, goal, settings=SETTINGS)
    if row.refused:
        with pytest.raises(HmcError, match=row.refused) as error:
            compress()
        assert len(str(error.value).splitlines()) == 1
        return
    result = compress().model
    check_valid(result)
    assert about(result) == about(original)
    assert original.SerializeToString(deterministic=True) == before
    assert 0 < macs(result, feeds) <= 0.6 * macs(original, feeds)
    ours, theirs = outputs_at(result, feeds), outputs_at(original, feeds)
    assert [[(o.shape, o.dtype) for o in at] for at in ours] == [[(o.shape, o.dtype) for o in at] for at in theirs]
    assert all(np.isfinite(o).all() for at in ours for o in at)
    for o, t in zip(ours[-1], theirs[-1], strict=True):
        assert o.dtype.kind != "f" or np.corrcoef(o.ravel(), t.ravel())[0, 1] > 0.6
    if row.check:
        row.check(original, result, feeds)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [feeds_of(net())]

    def get_next(self) -> Feeds | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_a_quantised_model_is_declined(form: str, tmp_path: Path) -> None:
    paths = tmp_path / "float.onnx", tmp_path / "quantised.onnx"
    save(net(), paths[0])
    if form == "dynamic":
        quantize_dynamic(*paths)
    else:
        quantize_static(*paths, Reader(), quant_format=QuantFormat[form])
    with pytest.raises(ModelError, match=r"give the float model that it was made from, with `precision` int8") as error:
        hmc_onnx.compress(paths[1], feeds_of(net()), "macs=0.6", settings=SETTINGS)
    assert len(str(error.value).splitlines()) == 1
