"""ResNets that torch exported, written as other exporters would have written them: the same function in another form.

`as_tf2onnx`, from Keras: images come as NHWC and are turned by a Transpose. Convs work on NCHW; the mean over the
image, Pads, Slices and every other pair of Adds work on NHWC, with Transposes around them. A strided Conv is padded by
a Pad in front of it ("fixed padding"), another by auto_pad in turn. Kernels are OIHW, or HWIO and turned in the graph.
Biases are the Conv's own, an Add on NCHW, or BiasAdd on NHWC. The dense layer is MatMul and Add.

`as_paddle`, from Paddle: weights are Constant nodes and go through Identity; a Conv's bias is reshaped and added;
`flatten` is Shape, Slice, Concat and Reshape; the dense layer is MatMul and Add.

Which of its ways a form takes at an operator depends only on how many of its kind come before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import helper, numpy_helper

NCHW, NHWC = "NCHW", "NHWC"
TURNS = {NHWC: [0, 2, 3, 1], NCHW: [0, 3, 1, 2]}  # the perm of a Transpose into a layout
SCOPE = "StatefulPartitionedCall/resnet"
KERAS = {
    "AveragePool": "average_pooling2d",
    "BatchNormalization": "batch_normalization",
    "MaxPool": "max_pooling2d",
    "Mul": "multiply",
    "Relu": "activation",
}
PADDLE = {  # what is not here gives tmp_0, tmp_1, ...
    "AveragePool": "pool2d",
    "BatchNormalization": "batch_norm",
    "GlobalAveragePool": "pool2d",
    "MaxPool": "pool2d",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
}


class Form:
    """Goes through the nodes of a model and writes each anew, by the method `write_` its operator, else by `copy`."""

    producer, image, result, batch, layout = "", "", "", "", NCHW

    def __init__(self, model: onnx.ModelProto) -> None:
        self.source = _folded(model)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.counts: Counter[str] = Counter()
        self.written: dict[tuple[str, str], str] = {}  # by the source's tensor and a layout; NCHW: as in the source

    def model(self) -> onnx.ModelProto:
        """The model in this form."""
        image, result = self.source.inputs[0], self.source.outputs[0]
        shape = image.shape if self.layout == NCHW else [image.shape[axis] for axis in TURNS[NHWC]]
        self.written[image.name, self.layout] = self.image
        for node in self.source.nodes:
            getattr(self, f"write_{node.op.lower()}", self.copy)(node)
        self.emit("Identity", [self.read(result)], self.result.removesuffix(":0"), self.result)
        needed = {self.result}  # a size that the source computed may be a constant here
        for node in reversed(self.nodes):
            needed.update(node.input if needed & set(node.output) else ())
        graph = helper.make_graph(
            [node for node in self.nodes if needed & set(node.output)],
            self.producer,
            [helper.make_tensor_value_info(self.image, onnx.TensorProto.FLOAT, [self.batch, *shape[1:]])],
            [helper.make_tensor_value_info(self.result, onnx.TensorProto.FLOAT, [self.batch, result.shape[1]])],
            [weight for weight in self.weights if weight.name in needed],
        )
        opsets = [helper.make_opsetid("", self.source.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name=self.producer)

    def constant(self, values: Any, name: str) -> str:
        """Write a constant; returns the tensor to read it from."""
        raise NotImplementedError  # each exporter has its own

    def copy(self, node: gs.Node) -> None:
        """Write a node as it is, but for the names."""
        raise NotImplementedError  # each exporter has its own

    def turn(self, what: str) -> int:
        """How often this was asked before."""
        self.counts[what] += 1
        return self.counts[what] - 1

    def emit(self, op: str, inputs: Sequence[str], name: str, output: str, **attributes: Any) -> str:
        """Write a node; returns its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def read(self, tensor: gs.Tensor) -> str:
        """The tensor that stands for one of the source."""
        if isinstance(tensor, gs.Constant):
            return self.constant(tensor.values, f"const_{self.turn('const')}")
        return "" if tensor.is_empty() else self.written[tensor.name, NCHW]


class Tf2onnx(Form):
    """See the module; a tensor is written in the layout in which its operator works, and turned when it is needed."""

    producer, image, result, batch, layout = "tf2onnx", "input_1:0", "Identity:0", "unk__123", NHWC

    def constant(self, values: Any, name: str) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values), f"{name}:0"))
        return f"{name}:0"

    def layer(self, kind: str) -> str:
        """The name of the next Keras layer of a kind."""
        count = self.turn(kind)
        return f"{SCOPE}/{kind}_{count}" if count else f"{SCOPE}/{kind}"

    def add_node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Write a node that gives what TensorFlow calls its first output; its name ends in a number if it is taken."""
        count = self.turn(name)
        name = f"{name}__{count}" if count else name
        return self.emit(op, inputs, name, f"{name}:0", **attributes)

    def turned(self, x: str, layout: str) -> str:
        """Write a Transpose into a layout."""
        return self.add_node("Transpose", [x], f"{x.removesuffix(':0')}__{layout}", perm=TURNS[layout])

    def read(self, tensor: gs.Tensor, layout: str = NCHW) -> str:
        """As in `Form`, in a layout; all that need a tensor turned share one Transpose."""
        if isinstance(tensor, gs.Constant) or tensor.is_empty() or (tensor.name, layout) in self.written:
            return super().read(tensor) if layout == NCHW else self.written[tensor.name, layout]
        other = self.written[tensor.name, NCHW if layout == NHWC else NHWC]
        self.written[tensor.name, layout] = self.turned(other, layout)
        return self.written[tensor.name, layout]

    def copy(self, node: gs.Node) -> None:
        name = f"{self.layer(KERAS.get(node.op, node.op.lower()))}/{node.op}"
        inputs = [self.read(tensor) for tensor in node.inputs]
        self.written[node.outputs[0].name, NCHW] = self.add_node(node.op, inputs, name, **node.attrs)

    def write_conv(self, node: gs.Node) -> None:
        x, kernel, *bias = node.inputs
        turn, layer, attributes = self.turn("Conv"), self.layer("conv2d"), dict(node.attrs)
        pads, place = attributes["pads"], f"{layer}/Conv2D"
        attributes.pop("auto_pad", None)
        y = self.read(x)
        if any(pads) and max(attributes["strides"]) > 1:  # TensorFlow's own padding is not symmetric here
            y = self.turned(self.padded(x, [0, 0, *pads[:2], 0, 0, *pads[2:]], f"{layer}_pad/Pad"), NCHW)
            attributes["pads"] = [0] * 4
        elif turn % 2 and node.inputs[0].shape[2:] == node.outputs[0].shape[2:]:
            del attributes["pads"]
            attributes["auto_pad"] = "SAME_UPPER"
        inputs, way = [y, self.kernel(kernel.values, place, turn % 3)], (turn // 3) % 3 if bias else 0
        inputs += [self.constant(bias[0].values, f"{layer}/BiasAdd/ReadVariableOp")] if bias and way == 0 else []
        y, layout = self.add_node("Conv", inputs, place, **attributes), NHWC if way == 2 else NCHW
        if way:
            values = bias[0].values.reshape(-1, 1, 1)[None] if way == 1 else bias[0].values
            added = self.constant(values, f"{layer}/BiasAdd/ReadVariableOp")
            y = self.add_node("Add", [self.turned(y, NHWC) if way == 2 else y, added], f"{layer}/BiasAdd")
        self.written[node.outputs[0].name, layout] = y

    def kernel(self, values: np.ndarray, place: str, way: int) -> str:
        """OIHW; or HWIO, turned; or (older tf2onnx) turned and reshaped too."""
        if way == 0:
            return self.constant(values, f"{place}/ReadVariableOp")
        hwio = self.constant(values.transpose(2, 3, 1, 0), f"{place}/ReadVariableOp")
        turned = self.add_node("Transpose", [hwio], f"{place}/ReadVariableOp__turned", perm=[3, 2, 0, 1])
        if way == 1:
            return turned
        return self.add_node("Reshape", [turned, self.constant(values.shape, f"{place}/shape")], f"{place}__reshaped")

    def padded(self, x: gs.Tensor, pads: Sequence[int], name: str) -> str:
        """Write a Pad of zeros on NHWC; the pads are given for NCHW."""
        begin, end = np.array(pads).reshape(2, 4)[:, TURNS[NHWC]]
        pads = self.constant(np.concatenate([begin, end]), f"{name}/paddings")
        return self.add_node("Pad", [self.read(x, NHWC), pads], name, mode="constant")

    def write_pad(self, node: gs.Node) -> None:
        name = f"{self.layer('zero_padding2d')}/Pad"
        self.written[node.outputs[0].name, NHWC] = self.padded(node.inputs[0], node.inputs[1].values, name)

    def write_slice(self, node: gs.Node) -> None:
        name = f"{self.layer('tf.strided_slice')}/StridedSlice"
        starts, ends, axes, steps = (tensor.values for tensor in node.inputs[1:])
        values = (starts, ends, np.array([TURNS[NHWC].index(axis) for axis in axes]), steps)
        inputs = [self.constant(v, f"{name}/{i}") for i, v in enumerate(values)]
        y = self.add_node("Slice", [self.read(node.inputs[0], NHWC), *inputs], name)
        self.written[node.outputs[0].name, NHWC] = y

    def write_elementwise(self, node: gs.Node) -> None:
        """Adds and Muls come two on NCHW, two on NHWC; the others stay in what they find, every fifth does not."""
        layout, turn = NCHW, self.turn(node.op)
        if len(node.outputs[0].shape or ()) == 4:
            on_nhwc = (turn // 2) % 2 if len(node.inputs) > 1 else (node.inputs[0].name, NCHW) not in self.written
            layout = NHWC if on_nhwc ^ (len(node.inputs) == 1 and turn % 5 == 4) else NCHW
        name = f"{self.layer(KERAS.get(node.op, node.op.lower()))}/{node.op}"
        inputs = [self.read(tensor, layout) for tensor in node.inputs]
        self.written[node.outputs[0].name, layout] = self.add_node(node.op, inputs, name)

    write_add = write_mul = write_relu = write_sigmoid = write_elementwise

    def write_globalaveragepool(self, node: gs.Node) -> None:
        """Mean, over the axes 1 and 2 of NHWC; what is flattened next loses them at once."""
        flat = all(reader.op in {"Flatten", "Reshape"} for reader in node.outputs[0].outputs)
        place = f"{self.layer('global_average_pooling2d')}/Mean"
        y = self.over(node, "ReduceMean", self.read(node.inputs[0], NHWC), [1, 2], 18, place, keepdims=int(not flat))
        self.written[node.outputs[0].name, NCHW if flat else NHWC] = y

    def write_reducemean(self, node: gs.Node) -> None:
        """A mean over the image, for variety, becomes what newer tf2onnx makes of it."""
        place = f"{self.layer('global_average_pooling2d')}/Mean"
        y = self.add_node("GlobalAveragePool", [self.read(node.inputs[0])], place)
        if not node.attrs["keepdims"]:
            y = self.over(node, "Squeeze", y, [2, 3], 13, f"{place}_squeezed")
        self.written[node.outputs[0].name, NCHW] = y

    def over(self, node: gs.Node, op: str, x: str, axes: list[int], since: int, name: str, **attributes: Any) -> str:
        """Write an operator whose axes are an input since an opset, and an attribute before."""
        if self.source.opset < since:
            return self.add_node(op, [x], name, axes=axes, **attributes)
        return self.add_node(op, [x, self.constant(axes, f"{name}/reduction_indices")], name, **attributes)

    def write_flatten(self, node: gs.Node) -> None:
        """A Reshape from or to NHWC."""
        x, (result, layout) = node.inputs[0], (node.outputs[0], NCHW)
        if len(result.shape or ()) == 4:  # a gate, N x C x 1 x 1
            shape, y, layout = [-1, 1, 1, x.shape[1]], self.read(x), NHWC
        elif "GlobalAveragePool" in {maker.op for maker in x.inputs}:  # flat already
            self.written[result.name, NCHW] = self.read(x)
            return
        else:
            shape, y = [-1, math.prod(x.shape[1:])], self.read(x, NHWC)
        name = f"{self.layer('flatten')}/Reshape"
        y = self.add_node("Reshape", [y, self.constant(shape, f"{name}/shape")], name)
        self.written[result.name, layout] = y

    write_reshape = write_flatten

    def write_expand(self, node: gs.Node) -> None:
        """Nothing: the Mul that reads it expands it."""
        for layout in (NCHW, NHWC):
            self.written[node.outputs[0].name, layout] = self.read(node.inputs[0], layout)

    def write_gemm(self, node: gs.Node) -> None:
        layer, (weight, bias) = self.layer("dense"), _dense(node)
        inputs = [self.read(node.inputs[0]), self.constant(weight, f"{layer}/MatMul/ReadVariableOp")]
        y = self.add_node("MatMul", inputs, f"{layer}/MatMul")
        if bias is not None:
            inputs = [y, self.constant(bias, f"{layer}/BiasAdd/ReadVariableOp")]
            y = self.add_node("Add", inputs, f"{layer}/BiasAdd")
        self.written[node.outputs[0].name, NCHW] = y

    write_matmul = write_gemm


class Paddle(Form):
    """See the module."""

    producer, image, result, batch = "PaddlePaddle", "x", "save_infer_model/scale_0.tmp_0", "DynamicDimension.0"

    def constant(self, values: Any, name: str) -> str:
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.emit("Constant", [], f"p2o.Constant.{self.turn('p2o.Constant')}", name, value=tensor)
        return name

    def weight(self, values: np.ndarray, name: str) -> str:
        """A constant that goes through an Identity."""
        return self.helper("Identity", [self.constant(values, name)])

    def helper(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Write a node; what it gives has a number for its name where Paddle has none."""
        output = output or f"p2o.helper.{self.turn('p2o.helper')}"
        return self.emit(op, inputs, f"p2o.{op}.{self.turn(f'p2o.{op}')}", output, **attributes)

    def layer(self, kind: str) -> str:
        """The name of the next layer of a kind."""
        return f"{kind}_{self.turn(kind)}"

    def copy(self, node: gs.Node) -> None:
        layer = self.layer(PADDLE.get(node.op, "tmp"))
        inputs = [
            self.weight(tensor.values, f"{layer}.w_{i}") if isinstance(tensor, gs.Constant) else self.read(tensor)
            for i, tensor in enumerate(node.inputs)
        ]
        output = f"{layer}.tmp_{3 if node.op == 'BatchNormalization' else 0}" if node.op in PADDLE else layer
        self.written[node.outputs[0].name, NCHW] = self.helper(node.op, inputs, output, **node.attrs)

    def write_conv(self, node: gs.Node) -> None:
        x, kernel, *bias = node.inputs
        layer = self.layer("conv2d")
        inputs = [self.read(x), self.weight(kernel.values, f"{layer}.w_0")]
        y = self.helper("Conv", inputs, f"{layer}.tmp_0", **node.attrs)
        if bias:
            shape = self.constant([1, -1, 1, 1], f"{layer}.shape")
            added = self.helper("Reshape", [self.weight(bias[0].values, f"{layer}.b_0"), shape])
            y = self.helper("Add", [y, added], f"{layer}.tmp_1")
        self.written[node.outputs[0].name, NCHW] = y

    def write_flatten(self, node: gs.Node) -> None:
        """`flatten_contiguous_range`: the batch is read off, the rest is what is left."""
        layer, x, result = self.layer("flatten"), self.read(node.inputs[0]), node.outputs[0]
        bounds = [self.constant([v], f"{layer}.{what}") for what, v in (("starts", 0), ("ends", 1), ("axes", 0))]
        batch = self.helper("Slice", [self.helper("Shape", [x]), *bounds])
        rest = self.constant([-1, *[1] * (len(result.shape or "NC") - 2)], f"{layer}.rest")
        shape = self.helper("Concat", [batch, rest], axis=0)
        self.written[result.name, NCHW] = self.helper("Reshape", [x, shape], f"{layer}.tmp_0")

    write_reshape = write_flatten

    def write_gemm(self, node: gs.Node) -> None:
        layer, (weight, bias) = self.layer("linear"), _dense(node)
        y = self.helper("MatMul", [self.read(node.inputs[0]), self.weight(weight, f"{layer}.w_0")], f"{layer}.tmp_0")
        if bias is not None:
            y = self.helper("Add", [y, self.weight(bias, f"{layer}.b_0")], f"{layer}.tmp_1")
        self.written[node.outputs[0].name, NCHW] = y

    write_matmul = write_gemm


def _folded(model: onnx.ModelProto) -> gs.Graph:
    """The source without the chains of Shape and Gather by which torch alone computes constants; with shapes."""
    ort.set_default_logger_severity(3)  # the folding warns of what it leaves
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model)).fold_constants().cleanup()
    folded = gs.export_onnx(graph)
    del folded.graph.value_info[:]  # what is constant now tells more shapes
    return gs.import_onnx(onnx.shape_inference.infer_shapes(folded, data_prop=True))


def _dense(node: gs.Node) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight (inputs, outputs) and bias of a Gemm or MatMul."""
    weight = node.inputs[1].values
    bias = node.inputs[2].values if len(node.inputs) > 2 else None
    return weight.T if node.attrs.get("transB", 0) else weight, bias


def as_tf2onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as tf2onnx would have written it; its images are NHWC."""
    return Tf2onnx(model).model()


def as_paddle(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as paddle2onnx would have written it."""
    return Paddle(model).model()


FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"tf2onnx": as_tf2onnx, "paddle": as_paddle}
