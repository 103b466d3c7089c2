"""Small models for the tests: a builder of graphs node by node, and CIFAR-style ResNets as exporters write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

INT_MAX = 2**63 - 1


class Builder:
    """Collects the nodes and weights of one graph. Each method adds nodes and returns the name of their output.

    Weights are float32, He-scaled and drawn from `seed`; `constants` puts them into Constant nodes, where they
    are initializers otherwise. A node is named after its place (`at`) and operator, its weights after the node.
    """

    def __init__(self, seed: int = 0, opset: int = 17, constants: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.constants = constants
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.taken: set[str] = set()

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        new, count = name, 0
        while new in self.taken:
            count += 1
            new = f"{name}_{count}"
        self.taken.add(new)
        return new

    def const(self, values: Any, name: str = "const") -> str:
        """A constant: an int64 tensor from Python integers, an array as it is."""
        name = self.unique(name)
        tensor = numpy_helper.from_array(np.asarray(values), name)
        if self.constants:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def node(self, op: str, *inputs: str, at: str = "", outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Any operator; returns its first output."""
        name = self.unique(f"{at}/{op}")
        names = [f"{name}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return names[0]

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Float32 normal values."""
        return (scale * self.rng.normal(size=shape)).astype(np.float32)

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, ...] = 3,
        *,
        group: int = 1,
        bias: bool = True,
        at: str = "",
        **attributes: Any,
    ) -> str:
        """A Conv with "same" pads unless told otherwise; an int kernel is a square one."""
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        attributes.setdefault("pads", [k // 2 for k in kernel] * 2)
        weight = self.normal(outputs, inputs // group, *kernel)
        weight *= math.sqrt(2 / (inputs // group * math.prod(kernel)))
        read = [x, self.const(weight, f"{at or 'conv'}.weight")]
        if bias:
            read.append(self.const(self.normal(outputs, scale=0.1), f"{at or 'conv'}.bias"))
        return self.node("Conv", *read, at=at, kernel_shape=kernel, group=group, **attributes)

    def batchnorm(self, x: str, channels: int, *, at: str = "", **attributes: Any) -> str:
        """A BatchNormalization with statistics of a normalised stream."""
        values = {
            "weight": self.rng.uniform(0.5, 1.5, channels),
            "bias": self.rng.normal(size=channels) * 0.1,
            "running_mean": self.rng.normal(size=channels) * 0.1,
            "running_var": self.rng.uniform(0.5, 1.5, channels),
        }
        read = [self.const(v.astype(np.float32), f"{at or 'bn'}.{k}") for k, v in values.items()]
        return self.node("BatchNormalization", x, *read, at=at, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int, *, at: str = "fc") -> str:
        """A Gemm as torch writes a Linear: transB and a bias."""
        weight = self.const(self.normal(outputs, inputs, scale=1 / math.sqrt(inputs)), f"{at}.weight")
        bias = self.const(self.normal(outputs, scale=0.1), f"{at}.bias")
        return self.node("Gemm", x, weight, bias, at=at, transB=1)

    def matmul(self, x: str, inputs: int, outputs: int, *, bias: bool = True, at: str = "fc") -> str:
        """A MatMul, and an Add of its bias."""
        weight = self.const(self.normal(inputs, outputs, scale=1 / math.sqrt(inputs)), f"{at}.weight")
        y = self.node("MatMul", x, weight, at=at)
        return self.node("Add", y, self.const(self.normal(outputs, scale=0.1), f"{at}.bias"), at=at) if bias else y

    def unary(self, op: str, x: str, axes: Sequence[int], since: int, *, at: str = "", **attributes: Any) -> str:
        """An operator whose axes are an input from opset `since` on, and an attribute before."""
        if self.opset >= since:
            return self.node(op, x, self.const(list(axes), "axes"), at=at, **attributes)
        return self.node(op, x, at=at, axes=list(axes), **attributes)

    def mean(self, x: str, axes: Sequence[int] = (2, 3), *, keepdims: int = 0, at: str = "") -> str:
        """A ReduceMean."""
        return self.unary("ReduceMean", x, axes, 18, at=at, keepdims=keepdims)

    def model(
        self,
        outputs: str | Sequence[str] | Mapping[str, Sequence[int | str]],
        inputs: Mapping[str, Sequence[int | str]] | Sequence[int | str] = ("N", 3, 8, 8),
        *,
        check: bool = True,
        **fields: Any,
    ) -> onnx.ModelProto:
        """The model, checked.

        Args:
            outputs: names, or shapes by name where inference cannot know them.
            inputs: shapes by name, or the shape of the one input, "input".
            check: False for a model that is broken on purpose.
            fields: of the ModelProto.
        """
        shapes = inputs if isinstance(inputs, Mapping) else {"input": inputs}
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        domains = sorted({n.domain for n in self.nodes} - {""})
        graph = helper.make_graph(
            self.nodes,
            "zoo",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in shapes.items()],
            [onnx.ValueInfoProto(name=n) for n in names],
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains)]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="zoo", **fields)
        inferred = onnx.shape_inference.infer_shapes(proto).graph.output
        for output, known in zip(proto.graph.output, inferred, strict=True):
            output.CopyFrom(known)
            if isinstance(outputs, Mapping):
                output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, outputs[output.name]))
        if check:  # full checks want the types of operators that onnx 1.23 does not infer
            onnx.checker.check_model(proto, full_check=not any(n.op_type == "GroupNormalization" for n in self.nodes))
        return proto


def pad_channels(b: Builder, x: str, before: int, after: int, form: str, at: str) -> str:
    """Zero channels on both sides of an NCHW tensor, in a form of torch's exporters."""
    pads = [0, before, 0, 0, 0, after, 0, 0]
    if form != "torchscript":
        return b.node("Pad", x, b.const(pads, f"{at}.pads"), at=at, mode="constant")
    # torch's pads go from the last axis to the first, (begin, end) each; the exporter turns them round in the graph
    torch_pads = b.const([0, 0, 0, 0, before, after], f"{at}.pads")
    filler = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    rest = b.node("ConstantOfShape", b.const([2], f"{at}.missing"), at=at, value=filler)
    pairs = b.node("Reshape", b.node("Concat", torch_pads, rest, at=at, axis=0), b.const([-1, 2]), at=at)
    turned = b.node("Slice", pairs, b.const([-1]), b.const([-INT_MAX]), b.const([0]), b.const([-1]), at=at)
    flat = b.node("Reshape", b.node("Transpose", turned, at=at, perm=[1, 0]), b.const([-1]), at=at)
    return b.node("Pad", x, b.node("Cast", flat, at=at, to=TensorProto.INT64), "", at=at, mode="constant")


def subsample(b: Builder, x: str, form: str, at: str) -> str:
    """x[:, :, ::2, ::2]: one Slice of both axes, or one for each as torch writes it."""
    if form == "plain":
        bounds = [[0, 0], [INT_MAX, INT_MAX], [2, 3], [2, 2]]
        return b.node("Slice", x, *(b.const(v, f"{at}.slice") for v in bounds), at=at)
    start, end, step = b.const([0], f"{at}.start"), b.const([INT_MAX], f"{at}.end"), b.const([2], f"{at}.step")
    for axis in (2, 3):
        x = b.node("Slice", x, start, end, b.const([axis], f"{at}.axis"), step, at=at)
    return x


def resnet(
    depth_blocks: Sequence[int] = (2, 2, 2),
    widths: Sequence[int] = (8, 16, 32),
    *,
    shortcut: Literal["A", "B"] = "A",
    option_a: Literal["plain", "torchscript", "dynamo"] = "plain",
    batchnorm: Literal["folded", "nodes"] = "folded",
    head: Literal["gap_flatten_gemm", "reducemean_matmul_add"] = "gap_flatten_gemm",
    weights: Literal["initializers", "constants"] = "initializers",
    block: Literal["basic", "bottleneck"] = "basic",
    opset: int = 17,
    size: int = 16,
    classes: int = 10,
    seed: int = 0,
) -> onnx.ModelProto:
    """A CIFAR-style ResNet (He et al., CVPR 2016): `input` N×3×size×size to `logits` N×classes, float32, O(1).

    Args:
        depth_blocks: blocks in each stage; every stage but the first halves the size.
        widths: channels of each stage; with bottlenecks of their 3×3 Convs, and four times as many outside.
        shortcut: option "A" pads the shortcut with channels of zeros, "B" is a 1×1 Conv.
        option_a: its form: one Slice and constant pads; TorchScript's two Slices and computed pads; dynamo's two
            Slices that share their constants, and constant pads.
        batchnorm: "nodes" and "folded" are the same function, before and after folding by numpy in float64.
        head: how the features become logits.
        weights: initializers, or Constant nodes.
        block: two 3×3 Convs, or 1×1, 3×3, 1×1.
        opset: 11 or later.
        size: height and width of the input.
        classes: number of logits.
        seed: for the weights.
    """
    b = Builder(seed, opset, weights == "constants")
    expansion = 4 if block == "bottleneck" else 1

    def conv_bn(x: str, inputs: int, outputs: int, kernel: int, at: str, stride: int = 1, gain: float = 1.0) -> str:
        weight = b.rng.normal(size=(outputs, inputs, kernel, kernel)) * math.sqrt(2 / (inputs * kernel**2))
        scale = gain * b.rng.uniform(0.6, 1.4, outputs)
        shift, mean = b.rng.normal(size=(2, outputs)) * 0.1
        variance = b.rng.uniform(0.5, 1.5, outputs)
        weight, scale, shift, mean, variance = (v.astype(np.float32) for v in (weight, scale, shift, mean, variance))
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        if batchnorm == "nodes":
            y = b.node("Conv", x, b.const(weight, f"{at}.weight"), at=f"/{at}", **attributes)
            names = ("weight", "bias", "running_mean", "running_var")
            values = zip(names, (scale, shift, mean, variance), strict=True)
            return b.node("BatchNormalization", y, *(b.const(v, f"{at}.bn.{n}") for n, v in values), at=f"/{at}")
        factor = scale / np.sqrt(variance.astype(np.float64) + 1e-5)
        folded = (weight * factor[:, None, None, None]).astype(np.float32)
        bias = (shift - factor * mean).astype(np.float32)
        return b.node(
            "Conv", x, b.const(folded, f"{at}.weight"), b.const(bias, f"{at}.bias"), at=f"/{at}", **attributes
        )

    x = b.node("Relu", conv_bn("input", 3, widths[0], 3, "conv1"))
    channels = widths[0]
    for stage, (blocks, width) in enumerate(zip(depth_blocks, widths, strict=True), start=1):
        for i in range(blocks):
            at = f"layer{stage}.{i}"
            stride = 2 if stage > 1 and i == 0 else 1
            outputs = width * expansion
            if block == "basic":
                y = b.node("Relu", conv_bn(x, channels, width, 3, f"{at}.conv1", stride), at=f"/{at}")
                y = conv_bn(y, width, outputs, 3, f"{at}.conv2", gain=0.5)
            else:
                y = b.node("Relu", conv_bn(x, channels, width, 1, f"{at}.conv1"), at=f"/{at}")
                y = b.node("Relu", conv_bn(y, width, width, 3, f"{at}.conv2", stride), at=f"/{at}")
                y = conv_bn(y, width, outputs, 1, f"{at}.conv3", gain=0.5)
            if stride > 1 or channels != outputs:
                if shortcut == "B":
                    x = conv_bn(x, channels, outputs, 1, f"{at}.downsample", stride)
                else:
                    x = subsample(b, x, option_a, f"/{at}") if stride > 1 else x
                    added = outputs - channels
                    x = pad_channels(b, x, added // 2, added - added // 2, option_a, f"/{at}") if added else x
            x = b.node("Relu", b.node("Add", y, x, at=f"/{at}"), at=f"/{at}")
            channels = outputs
    if head == "gap_flatten_gemm":
        x = b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x), axis=1), channels, classes, at="linear")
    else:
        x = b.matmul(b.mean(x), channels, classes, at="linear")
    b.nodes[-1].output[0] = "logits"
    return b.model("logits", ("N", 3, size, size))


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model in ONNX's text form, with the arrays given as initializers in front of those of the text."""
    proto = onnx.parser.parse_model(text)
    own = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*(numpy_helper.from_array(v, n) for n, v in weights.items()), *own])
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
    """The outputs on onnxruntime's CPU provider, each operator as it stands; an array feeds `input`."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds) if isinstance(feeds, Mapping) else {"input": feeds})


def images(count: int = 2, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(count, channels, size, size) float32, standard normal."""
    return np.random.default_rng(seed).normal(size=(count, channels, size, size)).astype(np.float32)


def assert_same(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-5) -> None:
    """Equal to float32 rounding: each value within `tolerance` of its own size plus that of the largest."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * max(1e-3, float(np.abs(e).max(initial=0))))
