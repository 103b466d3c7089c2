"""Random graphs, drawn by hypothesis out of every operator that has a channel rule.

A graph is a Conv, some steps (a function each, in STEPS) and a head (in HEADS). A step reads the end of the graph
so far and moves it on; a new operator's rule is proved by adding a step here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto
from zoo import INT_MAX, Builder, pad_channels, subsample

# Unary operators that leave zeros zero, by the opset that has them; and some that do not.
ZERO_PRESERVING = {
    1: [
        "Relu",
        "LeakyRelu",
        "Tanh",
        "Abs",
        "Neg",
        "Elu",
        "Selu",
        "Erf",
        "Softsign",
        "Dropout",
        "Floor",
        "Ceil",
        "Sign",
    ],
    7: ["Atan", "Sin", "Asinh", "Sinh", "Shrink"],
    10: ["ThresholdedRelu"],
    12: ["Celu", "Round"],
    14: ["HardSwish"],
    18: ["Mish"],
    20: ["Gelu"],
}
OTHER_UNARY = ["Sigmoid", "HardSigmoid", "Cos", "Softplus", "Cosh"]
STEPS: dict[str, Callable[[Drawing], None]] = {}
HEADS: dict[str, Callable[[Drawing], None]] = {}


class Drawing:
    """A graph being drawn: its builder, the end of it (`x`), and that end's channels and size."""

    def __init__(self, draw: st.DrawFn, zeros: bool = True) -> None:
        self.draw = draw
        self.zeros = zeros  # whether channels of zeros must stay zero
        self.opset = draw(st.sampled_from([9, 11, 13, 17, 20, 22]))
        self.b = Builder(draw(st.integers(0, 3)), self.opset, draw(st.booleans()))
        self.channels, self.height, self.width = 3, draw(st.sampled_from([6, 7])), 6
        self.image = ("N", 3, self.height, self.width)
        self.x = "input"

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def axis(self, *choices):
        """One of the choices; before opset 11, where negative axes came in, the first."""
        return self.pick(*choices) if self.opset >= 11 else choices[0]

    def conv(self, x: str, inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, **attributes) -> str:
        return self.b.conv(x, inputs, outputs, kernel, bias=self.draw(st.booleans()), **attributes)

    def unary(self, x: str) -> str:
        known = [op for since, ops in ZERO_PRESERVING.items() if since <= self.opset for op in ops]
        op = self.pick(*known, *([] if self.zeros else OTHER_UNARY))
        if op in ("Cosh", "Sinh"):
            x = self.b.node("Tanh", x)
        return self.b.node(op, x)

    def by_opset(self, op: str, x: str, since: int, parameters: dict[str, list[int] | None], **attributes) -> str:
        """An operator whose parameters are inputs from an opset on, and attributes before."""
        if self.opset < since:
            given = {k: v for k, v in parameters.items() if v is not None and not isinstance(v, str)}
            return self.b.node(op, x, **given, **attributes)
        return self.b.node(op, x, *("" if v is None else self.b.const(v) for v in parameters.values()), **attributes)

    def slice(self, x: str, starts: list[int], ends: list[int], axes: list[int]) -> str:
        return self.by_opset("Slice", x, 10, {"starts": starts, "ends": ends, "axes": axes})

    def pad(self, x: str, pads: list[int]) -> str:
        return self.by_opset("Pad", x, 11, {"pads": pads}, mode="constant")

    def axes(self, op: str, x: str, axes: list[int], **attributes) -> str:
        since = 18 if op.startswith("Reduce") and op != "ReduceSum" else 13
        return self.b.unary(op, x, axes, since, **attributes)

    def size(self, axis: int) -> list[str]:
        """One number of the shape, and the axes to unsqueeze it."""
        return [self.b.node("Gather", self.b.node("Shape", self.x), self.b.const(np.int64(axis))), self.b.const([0])]

    def global_pool(self) -> None:
        if self.pick(True, False):
            self.x = self.b.node(self.pick("GlobalAveragePool", "GlobalMaxPool"), self.x)
        else:
            self.x = self.axes(self.pick("ReduceMean", "ReduceMax", "ReduceSum"), self.x, self.axis([2, 3], [-1, -2]))
        self.height = self.width = 1


def step(function: Callable[[Drawing], None]) -> Callable[[Drawing], None]:
    STEPS[function.__name__] = function
    return function


def head(function: Callable[[Drawing], None]) -> Callable[[Drawing], None]:
    HEADS[function.__name__] = function
    return function


@step
def convolution(d: Drawing) -> None:
    outputs = d.pick(1, 2, 4, 6)
    if min(d.height, d.width) >= 3 and d.pick(True, False):
        (sy, sx), (dy, dx) = d.pick((1, 1), (2, 1), (2, 2)), d.pick((1, 1), (1, 2), (2, 2))
        top, left, bottom, right = d.pick((1, 1, 1, 1), (2, 2, 2, 2), (2, 1, 1, 2))
        height, width = d.height + top + bottom - 2 * dy, d.width + left + right - 2 * dx
        if min(height, width) > 0:
            pads = [top, left, bottom, right]
            d.x = d.conv(d.x, d.channels, outputs, pads=pads, strides=[sy, sx], dilations=[dy, dx])
            d.height, d.width = (height - 1) // sy + 1, (width - 1) // sx + 1
            d.channels = outputs
            return
    d.x = d.conv(d.x, d.channels, outputs, d.pick(1, 3, (1, 3), (3, 1)))
    d.channels = outputs


@step
def depthwise(d: Drawing) -> None:
    multiplier = d.pick(1, 1, 2) if d.channels <= 4 else 1
    d.x = d.conv(d.x, d.channels, d.channels * multiplier, group=d.channels)
    d.channels *= multiplier


@step
def grouped(d: Drawing) -> None:
    groups = 2 if d.channels % 2 == 0 else 3 if d.channels % 3 == 0 else 1
    outputs = groups * d.pick(1, 2)
    d.x = d.conv(d.x, d.channels, outputs, group=groups)
    d.channels = outputs


@step
def batch_norm(d: Drawing) -> None:
    if d.pick(True, False):
        d.x = d.conv(d.x, d.channels, d.channels)
    d.x = d.b.batchnorm(d.x, d.channels)


@step
def activation(d: Drawing) -> None:
    d.x = d.unary(d.x)


@step
def clip_and_identity(d: Drawing) -> None:
    b = d.b
    if d.opset < 11:
        x = b.node("Clip", d.x, min=-1.0, max=6.0)
    else:
        x = b.node("Clip", d.x, d.pick("", b.const(np.float32(-1))), b.const(np.float32(6)))
    d.x = b.node("Identity", x)


@step
def square_root(d: Drawing) -> None:
    d.x = d.b.node("Sqrt", d.b.node("Relu", d.x))


@step
def double_precision(d: Drawing) -> None:
    x = d.b.node("Cast", d.x, to=TensorProto.DOUBLE)
    d.x = d.b.node("Cast", d.b.node("Relu", x), to=TensorProto.FLOAT)


@step
def residual(d: Drawing) -> None:
    inner = d.pick(2, 4)
    y = d.unary(d.conv(d.x, d.channels, inner))
    y = d.conv(y, inner, d.channels)
    d.x = d.b.node(d.pick("Add", "Add", "Sub"), *d.pick((d.x, y), (y, d.x)))


@step
def squeeze_and_excitation(d: Drawing) -> None:
    y = d.b.node("GlobalAveragePool", d.x)
    y = d.b.node("Relu", d.conv(y, d.channels, 2, 1))
    y = d.b.node("Sigmoid", d.conv(y, 2, d.channels, 1))
    d.x = d.b.node("Mul", *d.pick((d.x, y), (y, d.x)))


@step
def option_a(d: Drawing) -> None:
    if min(d.height, d.width) < 2:
        return
    before, after = d.pick((1, 1), (0, 2), (2, 0), (1, 0))
    outputs = d.channels + before + after
    y = d.conv(d.x, d.channels, outputs, strides=[2, 2])
    form = d.pick("plain", "torchscript", "dynamo")
    if d.opset < 11:
        ends = [INT_MAX, INT_MAX]
        x = d.b.node("MaxPool", d.x, kernel_shape=[1, 1], strides=[2, 2])
        x = d.pad(d.slice(x, [0, 0], ends, [2, 3]), [0, before, 0, 0, 0, after, 0, 0])
    else:
        x = subsample(d.b, d.x, form, "/a")
        x = pad_channels(d.b, x, before, after, form if d.b.constants else "plain", "/a")
    d.x = d.b.node("Add", y, x)
    d.channels, d.height, d.width = outputs, (d.height + 1) // 2, (d.width + 1) // 2


@step
def pad_then_convolution(d: Drawing) -> None:
    """Channels of zeros that no addition ties to others, and zeros around the image."""
    if d.opset >= 18 and d.pick(True, False):
        x = d.b.node("Pad", d.x, d.b.const([1, 0, 1, 2, 1, 0]), "", d.b.const([-3, 3, 2]))
    else:
        x = d.pad(d.x, [0, 1, 1, 0, 0, 2, 0, 1])
    d.x = d.conv(x, d.channels + 3, d.channels, 1)
    d.height, d.width = d.height + 1, d.width + 1


@step
def scale_by_channel(d: Drawing) -> None:
    shape = d.pick((1, d.channels, 1, 1), (d.channels, 1, 1))
    scale = d.b.const(d.b.normal(*shape))
    d.x = d.b.node("Mul", *d.pick((d.x, scale), (scale, d.x)))


@step
def divide_by_channel(d: Drawing) -> None:
    d.x = d.b.node("Div", d.x, d.b.const(1 + np.abs(d.b.normal(1, d.channels, 1, 1))))


@step
def shift_by_channel(d: Drawing) -> None:
    shift = d.b.const(d.b.normal(d.channels, 1, 1, scale=0.1))
    d.x = d.b.node(d.pick("Add", "Sub"), *d.pick((d.x, shift), (shift, d.x)))


@step
def scale_all(d: Drawing) -> None:
    shape = d.pick((), (1,), (1, 1, 1, 1), (d.width,), (1, 1, d.height, 1))
    d.x = d.b.node("Mul", d.x, d.b.const(np.ones(shape, np.float32) / 2))


@step
def pool(d: Drawing) -> None:
    if min(d.height, d.width) < 2:
        return
    op = d.pick("MaxPool", "AveragePool", "LpPool")
    if d.pick(True, False):
        d.x = d.b.node(op, d.x, kernel_shape=[2, 2], strides=[2, 2])
        d.height, d.width = d.height // 2, d.width // 2
    else:
        d.x = d.b.node(op, d.x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])


@step
def concat(d: Drawing) -> None:
    if d.channels > 8:
        return
    width = d.pick(1, 2, 3)
    y = d.conv(d.x, d.channels, width, d.pick(1, 3))
    z = d.x if d.pick(True, False) else d.conv(d.x, d.channels, d.channels)
    d.x = d.b.node("Concat", *d.pick((y, z), (z, y)), axis=d.axis(1, -3))
    d.channels += width


@step
def concat_of_rows(d: Drawing) -> None:
    if d.height > 8:
        return
    y = d.conv(d.x, d.channels, d.channels)
    d.x = d.b.node("Concat", d.x, y, axis=2)
    d.height *= 2


@step
def channels_last(d: Drawing) -> None:
    """NHWC and back, with a linear layer over the last axis in between, as ConvNeXt has it."""
    b = d.b
    x = b.node("Transpose", d.x, perm=[0, 2, 3, 1])
    x = d.unary(x)
    if d.pick(True, False):
        x = b.node("Mul", x, b.const(b.normal(d.channels)))
    if d.pick(True, False):
        outputs = d.pick(2, 4)
        x = b.matmul(x, d.channels, outputs, bias=d.draw(st.booleans()))
        d.channels = outputs
    d.x = b.node("Transpose", x, perm=[0, 3, 1, 2])


@step
def rows_as_a_sequence(d: Drawing) -> None:
    """N C H W to N C HW, a 1-D Conv, and back."""
    b, size = d.b, d.height * d.width
    shape = d.pick([0, d.channels, -1], [0, 0, -1], [-1, d.channels, size], [0, -1, size])
    x = b.node("Reshape", d.x, b.const(shape))
    if d.pick(True, False):
        outputs = d.pick(2, 4)
        x = d.conv(x, d.channels, outputs, (3,))
        d.channels = outputs
    d.x = b.node("Reshape", x, b.const([0, d.channels, d.height, d.width]))


@step
def squeeze_and_unsqueeze(d: Drawing) -> None:
    if d.height == 1:
        x = d.unary(d.axes("Squeeze", d.x, d.axis([2], [-2])))
        d.x = d.axes("Unsqueeze", x, d.axis([2], [-2]))
    else:
        x = d.axes("Unsqueeze", d.x, d.axis([2], [-1], [1, 4]))
        d.x = d.b.node("Reshape", x, d.b.const([0, d.channels, d.height, d.width]))


@step
def transposed_convolution(d: Drawing) -> None:
    """ConvTranspose, whole, grouped or depthwise."""
    group = d.pick(1, 1, 2 if d.channels % 2 == 0 else 1, d.channels)
    outputs = group * d.pick(1, 2)
    if outputs > 8 or d.height > 8:
        return
    weight = d.b.const(d.b.normal(d.channels, outputs // group, 2, 2, scale=0.5))
    read = [d.x, weight, *([d.b.const(d.b.normal(outputs, scale=0.1))] if d.pick(True, False) else [])]
    d.x = d.b.node("ConvTranspose", *read, group=group, strides=[1, 1], kernel_shape=[2, 2])
    d.channels, d.height, d.width = outputs, d.height + 1, d.width + 1


@step
def volume(d: Drawing) -> None:
    """A 3-D Conv over a stack of one image."""
    x = d.axes("Unsqueeze", d.x, [2])
    outputs = d.pick(2, 4)
    x = d.b.conv(x, d.channels, outputs, (1, 3, 3), bias=d.draw(st.booleans()))
    d.x, d.channels = d.axes("Squeeze", x, [2]), outputs


@step
def automatic_pads(d: Drawing) -> None:
    weight = d.b.const(d.b.normal(4, d.channels, 3, 3, scale=0.3))
    d.x = d.b.node("Conv", d.x, weight, auto_pad=d.pick("SAME_UPPER", "SAME_LOWER"))  # kernel_shape is missing
    d.channels = 4


@step
def strided_projection(d: Drawing) -> None:
    d.x = d.conv(d.x, d.channels, 4, 1, strides=[2, 2])
    d.channels, d.height, d.width = 4, (d.height + 1) // 2, (d.width + 1) // 2


@step
def instance_norm(d: Drawing) -> None:
    if d.height * d.width < 4:
        return
    scale, shift = (d.b.const(d.b.normal(d.channels)) for _ in range(2))
    d.x = d.b.node("InstanceNormalization", d.x, scale, shift, epsilon=0.1)


@step
def group_norm(d: Drawing) -> None:
    """By the operator, and as torch's exporter writes it for older opsets."""
    groups = d.pick(*(g for g in (2, 3, d.channels) if d.channels % g == 0))
    if d.height * d.width * d.channels // groups < 4:
        return
    if d.opset >= 21:
        scale, shift = (d.b.const(d.b.normal(d.channels)) for _ in range(2))
        d.x = d.b.node("GroupNormalization", d.x, scale, shift, num_groups=groups, epsilon=0.1)
        return
    ones, zeros = d.b.const(np.ones(groups, np.float32)), d.b.const(np.zeros(groups, np.float32))
    x = d.b.node("Reshape", d.x, d.b.const([0, groups, -1]))
    x = d.b.node("InstanceNormalization", x, ones, zeros, epsilon=0.1)
    x = d.b.node("Reshape", x, d.b.const([0, d.channels, d.height, d.width]))
    x = d.b.node("Mul", x, d.b.const(d.b.normal(d.channels, 1, 1)))
    d.x = d.b.node("Add", x, d.b.const(d.b.normal(d.channels, 1, 1)))


@step
def parametric_relu(d: Drawing) -> None:
    d.x = d.b.node("PRelu", d.x, d.b.const(d.b.normal(*d.pick((d.channels, 1, 1), (1,), (1, 1, 1)))))


@step
def of_several(d: Drawing) -> None:
    y = d.conv(d.x, d.channels, d.channels, 1)
    z = d.b.node("Tanh", d.x)
    d.x = d.b.node(d.pick("Sum", "Max", "Min", "Mean"), *d.pick((d.x, y, z), (y, z), (z, d.x, d.x)))


@step
def split(d: Drawing) -> None:
    """Two parts, one of which goes through a Conv, joined again, or added where they are equal."""
    if d.channels < 2:
        return
    first = d.pick(1, d.channels // 2)
    sizes = [first, d.channels - first]
    equal = sizes[0] == sizes[1] and d.pick(True, False)
    name = d.b.unique("/Split")
    outputs, axis = [f"{name}_{i}" for i in range(2)], d.axis(1, -3)
    given = [] if equal or d.opset < 13 else [d.b.const(sizes)]
    attributes = {"split": sizes} if not equal and d.opset < 13 else {}
    if equal and d.opset >= 18:
        attributes["num_outputs"] = 2
    d.b.nodes.append(onnx.helper.make_node("Split", [d.x, *given], outputs, name=name, axis=axis, **attributes))
    a, b = outputs
    if equal and d.pick(True, False):
        d.x, d.channels = d.b.node("Add", a, b), first
    else:
        d.x = d.b.node("Concat", d.conv(b, sizes[1], 2), a, a, axis=1)
        d.channels = 2 + 2 * first


@step
def split_of_rows(d: Drawing) -> None:
    if d.height < 2:
        return
    sizes = [1, d.height - 1]
    name = d.b.unique("/Split")
    outputs = [f"{name}_{i}" for i in range(2)]
    given, attributes = ([d.b.const(sizes)], {}) if d.opset >= 13 else ([], {"split": sizes})
    d.b.nodes.append(onnx.helper.make_node("Split", [d.x, *given], outputs, name=name, axis=2, **attributes))
    d.x = d.b.node("Concat", *outputs[::-1], axis=2)


@step
def slice_of_channels(d: Drawing) -> None:
    if d.channels < 3:
        return
    start, end = d.pick((0, 2), (1, INT_MAX), (-2, INT_MAX), (1, -1))
    x = d.slice(d.x, [start, 0], [end, INT_MAX], d.axis([1, 2], [-3, 3]))
    width = len(range(d.channels)[start:end])
    d.x = d.b.node("Concat", x, d.x, axis=1) if d.pick(True, False) else d.conv(x, width, d.channels)
    d.channels = width + d.channels if "Concat" in d.x else d.channels


@step
def gather_of_channels(d: Drawing) -> None:
    indices = d.pick([0, -1], list(range(d.channels))[::-1], [0, 0, d.channels - 1])
    d.x = d.b.node("Gather", d.x, d.b.const(indices), axis=d.axis(1, -3))
    d.channels = len(indices)


@step
def gather_of_rows(d: Drawing) -> None:
    d.x = d.b.node("Gather", d.x, d.b.const([d.height - 1, 0]), axis=2)
    d.height = 2


@step
def cropped_channels(d: Drawing) -> None:
    if d.channels < 3:
        return
    before, after = d.pick((-1, 0), (0, -2), (-1, 1), (2, -1))
    d.x = d.pad(d.x, [0, before, 0, 0, 0, after, 0, 0])
    d.channels += before + after
    d.x = d.conv(d.x, d.channels, d.channels, 1)


@step
def channel_shuffle(d: Drawing) -> None:
    """Reshape, Transpose, Reshape, with numbers, or with sizes as torch computes them."""
    if d.channels % 2:
        return
    b, half = d.b, d.channels // 2
    if d.pick(True, False):
        first, last = b.const([0, 2, half, d.height, d.width]), b.const([0, d.channels, d.height, d.width])
    else:
        size = b.node("Shape", d.x)
        n, h, w = (b.node("Gather", size, b.const([i])) for i in (0, 2, 3))
        first = b.node("Concat", n, b.const([2]), b.const([half]), h, w, axis=0)
        last = b.node("Concat", n, b.const([d.channels]), h, w, axis=0)
    x = b.node("Transpose", b.node("Reshape", d.x, first), perm=[0, 2, 1, 3, 4])
    d.x = b.node("Reshape", x, last)


@step
def split_attention(d: Drawing) -> None:
    """Two halves of a grouped Conv, weighted by a softmax over them and added, as in a ResNeSt.

    The halves are written by Split, or by a Reshape to (2, channels).
    """
    b, half = d.b, d.pick(2, 4)
    if d.channels % 2 or d.opset < 13:
        return
    x = d.unary(d.conv(d.x, d.channels, 2 * half, group=2))
    form = d.pick("split", "reshape")
    if form == "split":
        x = b.node("Split", x, axis=1, outputs=2, **({"num_outputs": 2} if d.opset >= 18 else {}))
        halves = [x, x[:-1] + "1"]
        total = b.node("Add", *halves)
    else:
        x = b.node("Reshape", x, b.const([0, 2, half, d.height, d.width]))
        total = b.node("ReduceSum", x, b.const([1]), keepdims=0, at="radix")
    y = d.conv(d.unary(d.conv(b.node("GlobalAveragePool", total), half, 3, 1)), 3, 2 * half, 1)
    if d.pick(True, False):  # with an axis of length 1 for the cardinality, as timm writes it
        y = b.node("Transpose", b.node("Reshape", y, b.const([0, 1, 2, half])), perm=[0, 2, 1, 3])
    else:
        y = b.node("Reshape", y, b.const([0, 2, half, 1]))
    y = b.node("Softmax", y, axis=1, at="radix")
    if form == "split":
        y = b.node("Reshape", y, b.const([0, 2 * half, 1, 1]))
        y = b.node("Split", y, axis=1, outputs=2, **({"num_outputs": 2} if d.opset >= 18 else {}))
        d.x = b.node("Add", b.node("Mul", halves[0], y), b.node("Mul", halves[1], y[:-1] + "1"))
    else:
        y = b.node("Reshape", y, b.const([0, 2, half, 1, 1]))
        d.x = b.node("ReduceSum", b.node("Mul", x, y), b.const([1]), keepdims=0, at="radix")
    d.channels = half


@step
def shuffled_groups(d: Drawing) -> None:
    """Grouped Convs around a channel shuffle, as in a ShuffleNet: as many channels of each group can go."""
    if d.channels % 2:
        return
    b, outputs = d.b, d.pick(4, 8)
    x = d.conv(d.x, d.channels, outputs, d.pick(1, 3), group=2)
    x = b.node("Reshape", x, b.const([0, 2, outputs // 2, d.height, d.width]))
    x = b.node("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = b.node("Reshape", x, b.const([0, outputs, d.height, d.width]))
    d.x = d.conv(x, outputs, outputs, group=2)
    d.channels = outputs


@step
def chunks(d: Drawing) -> None:
    """`x.chunk(2, 1)` as TorchScript's exporter computes its bounds, the halves in the other order or added."""
    if d.channels % 2 or d.opset < 10:
        return
    b = d.b
    c = b.node("Gather", b.node("Shape", d.x), b.const([1]))
    half = b.node("Mul", b.node("Div", b.node("Add", c, b.const([1])), b.const([2])), b.const([1]))
    first = b.node("Slice", d.x, b.const([0]), half, b.const([1]))
    last = b.node("Slice", d.x, half, b.node("Mul", half, b.const([2])), b.const([1]))
    if d.pick(True, False):
        d.x = b.node("Concat", last, d.conv(first, d.channels // 2, 3, 1), axis=1)
        d.channels = d.channels // 2 + 3
    else:
        d.x, d.channels = b.node("Add", last, first), d.channels // 2


@step
def resize(d: Drawing) -> None:
    b, size = d.b, [d.height * 2, d.width * 2]
    if d.height > 8:
        return
    if d.opset < 10:
        d.x = b.node("Upsample", d.x, b.const(np.array([1, 1, 2, 2], np.float32)))
    elif d.opset < 11:
        d.x = b.node("Resize", d.x, b.const(np.array([1, 1, 2, 2], np.float32)))
    elif d.opset >= 18 and d.pick(True, False):
        d.x = b.node("Resize", d.x, "", "", b.const(size), axes=[2, 3])
    elif d.pick(True, False):
        roi = "" if d.opset >= 13 else b.const(np.zeros(0, np.float32))
        none = "" if d.opset >= 13 else b.const(np.zeros(0, np.float32))
        n = d.b.node("Slice", b.node("Shape", d.x), b.const([0]), b.const([1]))
        d.x = b.node("Resize", d.x, roi, none, b.node("Concat", n, b.const([d.channels, *size]), axis=0))
    else:
        roi = b.const(np.zeros(0, np.float32))
        d.x = b.node("Resize", d.x, roi, b.const(np.array([1, 1, 2, 2], np.float32)))
    d.height, d.width = size


@step
def attention_over_places(d: Drawing) -> None:
    """Softmax over the width, and a gate of one channel for all."""
    axis = 3
    y = d.b.node("Softmax", d.x, axis=axis)
    gate = d.b.node("Sigmoid", d.conv(d.x, d.channels, 1, 1))
    d.x = d.b.node("Mul", *d.pick((d.x, gate), (gate, d.x)))
    if not d.zeros:
        d.x = d.b.node("Add", d.x, y)


@step
def tiled(d: Drawing) -> None:
    d.x = d.b.node("Tile", d.x, d.b.const([1, 2, 1, 1]))
    d.channels *= 2


@step
def depth_and_space(d: Drawing) -> None:
    if d.channels % 4 == 0 and d.height <= 8:
        attributes = {} if d.opset < 11 else {"mode": d.pick("DCR", "CRD")}
        d.x = d.b.node("DepthToSpace", d.x, blocksize=2, **attributes)
        d.channels, d.height, d.width = d.channels // 4, d.height * 2, d.width * 2
    elif d.height % 2 == d.width % 2 == 0 and d.channels <= 2:
        d.x = d.b.node("SpaceToDepth", d.x, blocksize=2)
        d.channels, d.height, d.width = d.channels * 4, d.height // 2, d.width // 2


@step
def quantised_activation(d: Drawing) -> None:
    if d.opset < 10:
        return
    shape = () if d.opset < 13 else d.pick((), (d.channels,))
    scale = d.b.const(np.full(shape, 0.05, np.float32))
    zero = d.b.const(np.zeros(shape, np.int8))
    d.x = d.b.node("DequantizeLinear", d.b.node("QuantizeLinear", d.x, scale, zero), scale, zero)


@step
def gate_of_linear_layers(d: Drawing) -> None:
    """Squeeze-and-excitation as torch's port writes it: view, Linear, view, expand_as."""
    b = d.b
    pooled = b.node("GlobalAveragePool", d.x)
    n = b.node("Gather", b.node("Shape", d.x), b.const([0]))
    y = b.node("Reshape", pooled, b.node("Concat", n, b.const([d.channels]), axis=0))
    y = b.gemm(b.node("Relu", b.gemm(y, d.channels, 2)), 2, d.channels)
    one = b.const([1])
    y = b.node("Reshape", b.node("Sigmoid", y), b.node("Concat", n, b.const([d.channels]), one, one, axis=0))
    if d.pick(True, False):
        y = b.node("Expand", y, d.pick(b.node("Shape", d.x), b.const([1, d.channels, d.height, d.width])))
    d.x = b.node("Mul", d.x, y)


@step
def choice_by_sign(d: Drawing) -> None:
    if d.opset < 11:
        return
    zero = d.b.const(np.float32(0))
    y = d.conv(d.x, d.channels, d.channels, 1)
    d.x = d.b.node("Where", d.b.node("Greater", d.x, zero), d.x, y)


@step
def power(d: Drawing) -> None:
    d.x = d.b.node("Pow", d.x, d.b.const(np.float32(2)))


@head
def flatten_gemm(d: Drawing) -> None:
    d.x = d.b.gemm(d.b.node("Flatten", d.x, axis=d.axis(1, -3)), d.channels * d.height * d.width, 3)


@head
def reshape_matmul(d: Drawing) -> None:
    features = d.channels * d.height * d.width
    shape = d.pick([0, -1], [-1, features], [0, features])
    d.x = d.b.matmul(d.b.node("Reshape", d.x, d.b.const(shape)), features, 3, bias=d.draw(st.booleans()))


@head
def pool_flatten_gemm(d: Drawing) -> None:
    d.global_pool()
    flatten_gemm(d)


@head
def pool_reshape_matmul(d: Drawing) -> None:
    d.global_pool()
    reshape_matmul(d)


@head
def pool_squeeze_gemm(d: Drawing) -> None:
    d.global_pool()
    d.x = d.b.gemm(d.axes("Squeeze", d.x, d.axis([2, 3], [-1, -2], [3, 2])), d.channels, 3)


@head
def mean_gemm_gemm(d: Drawing) -> None:
    x = d.axes("ReduceMean", d.x, d.axis([2, 3], [-2, -1]), keepdims=0)
    d.x = d.b.gemm(d.b.node("Relu", d.b.gemm(x, d.channels, 4)), 4, 3)


@head
def rows_mean_gemm(d: Drawing) -> None:
    x = d.b.node("Reshape", d.x, d.b.const(d.pick([0, d.channels, -1], [0, 0, -1])))
    d.x = d.b.gemm(d.axes("ReduceMean", x, [2], keepdims=0), d.channels, 3)


@head
def pool_convolution_flatten(d: Drawing) -> None:
    d.global_pool()
    d.x = d.b.node("Flatten", d.conv(d.x, d.channels, 3, 1))


@head
def view_gemm(d: Drawing) -> None:
    """x.view(x.size(0), -1)."""
    n = d.b.node("Unsqueeze", *d.size(0)) if d.opset >= 13 else d.b.node("Unsqueeze", d.size(0)[0], axes=[0])
    x = d.b.node("Reshape", d.x, d.b.node("Concat", n, d.b.const([-1]), axis=0))
    d.x = d.b.gemm(x, d.channels * d.height * d.width, 3)


@head
def matmul_from_the_left(d: Drawing) -> None:
    """W x with the channels along the rows of x."""
    x = d.b.node("Reshape", d.x, d.b.const([0, d.channels, -1]))
    y = d.b.node("MatMul", d.b.const(d.b.normal(3, d.channels)), x)
    d.x = d.b.mean(y, [2])


@st.composite
def graphs(draw: st.DrawFn, part: str, zeros: bool) -> onnx.ModelProto:
    """A Conv, some steps, and a head; `part` is one of them, the others are drawn.

    With `zeros`, channels of zeros stay zero at every step.
    """
    d = Drawing(draw, zeros)
    convolution(d)
    others = st.lists(st.sampled_from(sorted(STEPS)), max_size=2)
    for name in [*draw(others), *([part] if part in STEPS else []), *draw(others)]:
        STEPS[name](d)
    HEADS[part if part in HEADS else draw(st.sampled_from(sorted(HEADS)))](d)
    return d.b.model({d.x: ["N", 3]}, d.image)
