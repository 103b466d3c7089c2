"""Channel groups: what is found to go together does, and channels that are zero go without a trace.

The property below is how an operator's rule is proved: draw a graph out of the operators that have one, make the
channels of some classes zero, remove them, and compare what onnxruntime computes before and after.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from zoo import INT_MAX, Builder, assert_same, images, pad_channels, parsed, resnet, run, subsample

from passes.channels import ChannelGroup, Channels, rules, trace, tracing
from passes.channels.tracing import register
from passes.cost import total
from passes.errors import ModelError
from passes.model import Model
from passes.normalise import normalise

# Unary operators that leave zeros zero, by the opset that has them.
ZERO_PRESERVING = {
    11: ["Relu", "LeakyRelu", "Tanh", "Abs", "Neg", "Elu", "Selu", "Erf", "Softsign", "ThresholdedRelu", "Dropout"],
    12: ["Celu"],
    14: ["HardSwish"],
    18: ["Mish"],
    20: ["Gelu"],
}
STEPS: dict[str, Callable[[Drawing], None]] = {}
HEADS: dict[str, Callable[[Drawing], None]] = {}


class Drawing:
    """A graph being drawn: its builder, the end of it (`x`), and that end's channels and size."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.opset = draw(st.sampled_from([13, 17, 20]))
        self.b = Builder(draw(st.integers(0, 3)), self.opset, draw(st.booleans()))
        self.channels, self.height, self.width = 3, draw(st.sampled_from([6, 7])), 6
        self.image = ("N", 3, self.height, self.width)
        self.x = "input"

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, **attributes) -> str:
        return self.b.conv(x, inputs, outputs, kernel, bias=self.draw(st.booleans()), **attributes)

    def unary(self, x: str) -> str:
        known = [op for since, ops in ZERO_PRESERVING.items() if since <= self.opset for op in ops]
        return self.b.node(self.pick(*known), x)

    def axes(self, op: str, x: str, axes: list[int], **attributes) -> str:
        since = 18 if op.startswith("Reduce") and op != "ReduceSum" else 13
        return self.b.unary(op, x, axes, since, **attributes)

    def global_pool(self) -> None:
        if self.pick(True, False):
            self.x = self.b.node(self.pick("GlobalAveragePool", "GlobalMaxPool"), self.x)
        else:
            self.x = self.axes(self.pick("ReduceMean", "ReduceMax", "ReduceSum"), self.x, self.pick([2, 3], [-1, -2]))
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
    d.x = b.node("Identity", b.node("Clip", d.x, b.const(np.float32(-1)), b.const(np.float32(6))))


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
    x = subsample(d.b, d.x, form, "/a")
    x = pad_channels(d.b, x, before, after, form if d.b.constants else "plain", "/a")
    d.x = d.b.node("Add", y, x)
    d.channels, d.height, d.width = outputs, (d.height + 1) // 2, (d.width + 1) // 2


@step
def pad_then_convolution(d: Drawing) -> None:
    """Channels of zeros that no addition ties to others, and zeros around the image."""
    x = d.b.node("Pad", d.x, d.b.const([0, 1, 1, 0, 0, 2, 0, 1]))
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
    d.x = d.b.node("Concat", *d.pick((y, z), (z, y)), axis=d.pick(1, -3))
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
        x = d.unary(d.axes("Squeeze", d.x, d.pick([2], [-2])))
        d.x = d.axes("Unsqueeze", x, d.pick([2], [-2]))
    else:
        x = d.axes("Unsqueeze", d.x, d.pick([2], [-1], [1, 4]))
        d.x = d.axes("Reshape", x, [0, d.channels, d.height, d.width])


@head
def flatten_gemm(d: Drawing) -> None:
    d.x = d.b.gemm(d.b.node("Flatten", d.x, axis=d.pick(1, -3)), d.channels * d.height * d.width, 3)


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
    d.x = d.b.gemm(d.axes("Squeeze", d.x, d.pick([2, 3], [-1, -2], [3, 2])), d.channels, 3)


@head
def mean_gemm_gemm(d: Drawing) -> None:
    x = d.axes("ReduceMean", d.x, d.pick([2, 3], [-2, -1]), keepdims=0)
    d.x = d.b.gemm(d.b.node("Relu", d.b.gemm(x, d.channels, 4)), 4, 3)


@head
def rows_mean_gemm(d: Drawing) -> None:
    x = d.b.node("Reshape", d.x, d.b.const(d.pick([0, d.channels, -1], [0, 0, -1])))
    d.x = d.b.gemm(d.axes("ReduceMean", x, [2], keepdims=0), d.channels, 3)


@head
def pool_convolution_flatten(d: Drawing) -> None:
    d.global_pool()
    d.x = d.b.node("Flatten", d.conv(d.x, d.channels, 3, 1))


@st.composite
def graphs(draw: st.DrawFn, part: str) -> onnx.ModelProto:
    """A Conv, some steps, and a head; `part` is one of them, the others are drawn."""
    d = Drawing(draw)
    convolution(d)
    others = st.lists(st.sampled_from(sorted(STEPS)), max_size=2)
    for name in [*draw(others), *([part] if part in STEPS else []), *draw(others)]:
        STEPS[name](d)
    HEADS[part if part in HEADS else draw(st.sampled_from(sorted(HEADS)))](d)
    return d.b.model(d.x, d.image)


def silence(group: ChannelGroup, classes: np.ndarray) -> None:
    """Make some channels zero: what produces them, and what is added to them on the way."""
    for slot, of in zip(group.slots, group.classes, strict=True):
        scales = slot.node.op == "BatchNormalization" and slot.index == 1
        adds = slot.node.op in ("Conv", "Gemm", "Add", "Sub") or (slot.node.op, slot.index) == ("BatchNormalization", 2)
        if slot.role == "consumes" or (slot.role == "follows" and not (scales or adds)):
            continue
        old = slot.node.inputs[slot.index]
        values = np.array(old.values)
        np.moveaxis(values, slot.axis, 0)[np.isin(of, classes)] = 0
        slot.node.inputs[slot.index] = gs.Constant(f"{old.name}~{slot.node.name}", values)


def sizes(model: Model) -> dict[tuple[str, int], tuple[int, ...]]:
    """Shape of each constant, by reader and input."""
    return {
        (n.name, i): tuple(t.shape)
        for n in model.graph.nodes
        for i, t in enumerate(n.inputs)
        if isinstance(t, gs.Constant)
    }


def shrunk(channels: Channels, removed: dict[str, np.ndarray], before: dict) -> dict:
    """What `sizes` should become."""
    after = {k: list(s) for k, s in before.items()}
    for group in channels.groups:
        for slot, of in zip(group.slots, group.classes, strict=True):
            gone = np.isin(of, removed.get(group.name, []))
            after[slot.node.name, slot.index][slot.axis] -= int(gone.sum())
    return {k: tuple(s) for k, s in after.items()}


def gone_after(channels: Channels, removed: dict[str, np.ndarray], before: dict) -> bool:
    """Whether a constant would lose its last entry."""
    return any(0 in shape for shape in shrunk(channels, removed, before).values())


@pytest.mark.parametrize("part", [*STEPS, *HEADS])
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_removing_channels_of_zeros_changes_nothing(part: str, data: st.DataObject) -> None:
    proto = data.draw(graphs(part))
    feeds = images(2, proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value)[..., :6]
    model = Model(proto)
    if any(n.op_type == "Constant" for n in proto.graph.node) or data.draw(st.booleans()):
        model = normalise(proto)
        assert_same(run(model.finished(), feeds), run(proto, feeds), 3e-5)
    for _ in range(2):  # what has been pruned once can be pruned again
        channels = trace(model)
        for group in channels.groups:
            assert group.size == 1 or group.closed is None or "the model's output" in group.closed, group.closed
            for slot, of in zip(group.slots, group.classes, strict=True):
                assert len(of) == len(slot.ids) == slot.node.inputs[slot.index].shape[slot.axis], str(slot)
        groups = [g for g in channels.groups if g.closed is None and g.size > 1]
        assume(groups)
        removed = {}
        for group in data.draw(st.lists(st.sampled_from(groups), min_size=1, max_size=2, unique_by=lambda g: g.name)):
            classes = st.sets(st.integers(0, group.size - 1), min_size=1, max_size=group.size - 1)
            removed[group.name] = np.array(sorted(data.draw(classes)))
            silence(group, removed[group.name])
        expected, before, cost = run(model.finished(), feeds), sizes(model), total(model)
        if gone_after(channels, removed, before):
            digest = model.digest()
            with pytest.raises(ModelError, match=r"would leave node '.+' without channels: remove fewer"):
                channels.remove(removed)
            assert model.digest() == digest
            return
        channels.remove(removed)
        done = model.finished()
        onnx.checker.check_model(done, full_check=True)
        assert_same(run(done, feeds), expected, 3e-5)
        traced = {(s.node.name, s.index) for g in channels.groups for s in g.slots}
        after = {k: shape for k, shape in shrunk(channels, removed, before).items() if k in traced}
        assert {k: shape for k, shape in sizes(model).items() if k in traced} == after
        assert total(model).parameters < cost.parameters
        assert total(model).macs < cost.macs


RESNETS = {
    "option A": {},
    "option A, batch norm": {"batchnorm": "nodes", "option_a": "dynamo"},
    "option A, TorchScript": {"option_a": "torchscript", "weights": "constants", "head": "reducemean_matmul_add"},
    "option A, bottleneck": {"block": "bottleneck", "opset": 20, "head": "reducemean_matmul_add"},
    "option B": {"shortcut": "B", "depth_blocks": (1, 2, 1)},
    "option B, bottleneck, batch norm": {"shortcut": "B", "block": "bottleneck", "batchnorm": "nodes", "opset": 11},
}


@pytest.mark.parametrize("form", RESNETS.values(), ids=RESNETS)
def test_a_resnet_loses_dead_channels_everywhere_at_once(form: dict) -> None:
    model = normalise(resnet(**{"depth_blocks": (1, 1, 1), "widths": (4, 8, 16), "size": 8} | form))
    channels, rng = trace(model), np.random.default_rng(0)
    removed = {}
    for group in channels.groups:
        if group.closed is None:
            kept = {int(c) for _, of in group.members("produces") for c in rng.choice(of, 1)}
            gone = rng.choice(group.size, group.size // 2, replace=False)
            removed[group.name] = np.array([c for c in gone if c not in kept])
            silence(group, removed[group.name])
    assert len(removed) == len(channels.groups) - 1  # all but the logits
    expected, before = run(model.finished(), images(2, 8)), total(model)
    channels.remove(removed)
    done = model.finished()
    onnx.checker.check_model(done, full_check=True)
    assert_same(run(done, images(2, 8)), expected, 3e-5)
    assert total(model).macs < 0.7 * before.macs


def closed_by(b: Builder, outputs: str | list[str], image: tuple = ("N", 3, 8, 8)) -> dict[str, str | None]:
    """Why each group of a graph is closed, by its first producer."""
    return {g.name: g.closed for g in trace(Model(b.model(outputs, image))).groups}


# What belongs together


def names(group: ChannelGroup, role: str) -> list[str]:
    return [slot.node.name for slot, _ in group.members(role)]


def test_a_residual_stage_is_one_group_and_each_block_has_another_inside() -> None:
    stage, first, second, logits = trace(normalise(resnet((2,), (8,)))).groups
    assert stage.name == "/conv1/Conv"
    assert names(stage, "produces") == ["/conv1/Conv", "/layer1.0.conv2/Conv", "/layer1.1.conv2/Conv"]
    assert names(stage, "follows") == names(stage, "produces")  # their biases
    assert names(stage, "consumes") == ["/layer1.0.conv1/Conv", "/layer1.1.conv1/Conv", "linear/Gemm"]
    assert stage.size == 8
    assert stage.closed is None
    assert all(np.array_equal(of, np.arange(8)) for of in stage.classes)
    for group, block in ((first, "/layer1.0"), (second, "/layer1.1")):
        assert (names(group, "produces"), names(group, "consumes")) == (
            [f"{block}.conv1/Conv"],
            [f"{block}.conv2/Conv"],
        )
        assert (group.size, group.closed) == (8, None)
    assert logits.closed == "it is the model's output 'logits'"


def test_the_parameters_of_a_batch_norm_follow_its_channels() -> None:
    stage, *_ = trace(Model(resnet((1,), (4,), batchnorm="nodes"))).groups
    assert names(stage, "follows") == ["/conv1/BatchNormalization"] * 4 + ["/layer1.0.conv2/BatchNormalization"] * 4
    assert {s.index for s, _ in stage.members("follows")} == {1, 2, 3, 4}


def test_a_shortcut_with_a_conv_begins_a_group_of_its_own() -> None:
    groups = {n: g for g in trace(normalise(resnet((1, 1), (4, 8), shortcut="B"))).groups for n in names(g, "produces")}
    assert names(groups["/conv1/Conv"], "consumes") == [
        "/layer1.0.conv1/Conv",
        "/layer2.0.conv1/Conv",
        "/layer2.0.downsample/Conv",
    ]
    assert groups["/layer2.0.conv2/Conv"] is groups["/layer2.0.downsample/Conv"]
    assert len({g.name for g in groups.values()}) == 5
    assert groups["/layer2.0.downsample/Conv"].size == 8


@pytest.mark.parametrize("option_a", ["plain", "torchscript", "dynamo"])
def test_padded_shortcuts_put_each_stage_in_the_middle_of_the_next(option_a: str) -> None:
    stage, *_ = trace(normalise(resnet((1, 1, 1), (4, 8, 16), option_a=option_a))).groups
    assert stage.size == 16
    by_name = {slot.node.name: of for slot, of in stage.members("produces")}
    first, second, third = (by_name[f"/layer{i}.0.conv2/Conv"] for i in (1, 2, 3))
    np.testing.assert_array_equal(third[4:12], second)
    np.testing.assert_array_equal(second[2:6], first)
    np.testing.assert_array_equal(by_name["/conv1/Conv"], first)
    assert sorted(third) == list(range(16))


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (1, 2)])
def test_uneven_pads_shift_the_channels_and_shrink_with_them(before: int, after: int) -> None:
    b = Builder()
    x = b.conv("input", 3, 4, at="/a")
    y = b.node("Add", pad_channels(b, x, before, after, "plain", "/s"), b.conv(x, 4, 7, at="/b"))
    model = Model(b.model(b.conv(y, 7, 2)))
    channels = trace(model)
    group = channels.groups[0]
    by_name = {slot.node.name: of for slot, of in group.members("produces")}
    np.testing.assert_array_equal(by_name["/b/Conv"][before : before + 4], by_name["/a/Conv"])
    gone = np.concatenate([by_name["/a/Conv"][:1], by_name["/b/Conv"][:before], by_name["/b/Conv"][before + 4 :][:1]])
    channels.remove({group.name: gone})
    pads = next(n for n in model.graph.nodes if n.op == "Pad").inputs[1].values.tolist()
    assert pads == [0, 0, 0, 0, 0, after - (after > 0), 0, 0]
    model.finished()


def test_flattened_channels_are_columns_of_the_gemm() -> None:
    b = Builder()
    x = b.node("Flatten", b.conv("input", 3, 4))
    group = trace(Model(b.model(b.gemm(x, 4 * 64, 5)))).groups[0]
    ((_, of),) = group.members("consumes")
    np.testing.assert_array_equal(of, np.repeat(np.arange(4), 64))


def test_concatenated_channels_keep_to_their_groups() -> None:
    b = Builder()
    x = b.node("Concat", b.conv("input", 3, 2, at="/a"), b.conv("input", 3, 1, at="/b"), axis=1)
    first, second, _ = trace(Model(b.model(b.conv(x, 3, 5, at="/c")))).groups
    assert (first.name, first.size, second.name, second.size) == ("/a/Conv", 2, "/b/Conv", 1)
    assert [first.members("consumes")[0][1].tolist(), second.members("consumes")[0][1].tolist()] == [
        [0, 1, -1],
        [-1, -1, 0],
    ]


@pytest.mark.parametrize("order", [(1, 3), (3, 1), (1, 1)])
def test_concatenated_single_channels_are_told_apart(order: tuple[int, int]) -> None:
    b = Builder()
    x = b.node("Concat", *(b.conv("input", 3, n) for n in order), axis=1)
    groups = trace(Model(b.model(b.conv(x, sum(order), 2, group=1)))).groups
    assert [g.size for g in groups] == [*order, 2]
    assert all(len(g.members("consumes")[0][1]) == sum(order) for g in groups[:2])


def test_a_depthwise_conv_passes_its_channels_on_and_loses_groups_with_them() -> None:
    b = Builder()
    x = b.conv(b.conv("input", 3, 4, at="/a"), 4, 8, group=4, at="/dw")
    model = Model(b.model(b.conv(x, 8, 2, at="/b")))
    channels = trace(model)
    group = channels.groups[0]
    assert [of.tolist() for _, of in group.members("produces")] == [[0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]]
    channels.remove({group.name: np.array([0, 2])})
    depthwise = model.graph.nodes[1]
    assert depthwise.attrs["group"] == 2
    assert depthwise.inputs[1].shape == (4, 1, 3, 3)
    model.finished()


def test_the_groups_of_a_grouped_conv_stay_equal() -> None:
    b = Builder()
    x = b.conv(b.conv("input", 3, 6, at="/a"), 6, 4, group=2, at="/g")
    model = Model(b.model(b.conv(x, 4, 2, at="/b")))
    channels = trace(model)
    entering, leaving, _ = channels.groups
    assert (entering.size, leaving.size) == (3, 2)
    assert entering.members("produces")[0][1].tolist() == [0, 1, 2, 0, 1, 2]
    channels.remove({entering.name: np.array([1]), leaving.name: np.array([0])})
    grouped = model.graph.nodes[1]
    assert (grouped.attrs["group"], grouped.inputs[1].shape) == (2, (2, 2, 3, 3))
    model.finished()


def test_a_shape_that_two_reshapes_share_shrinks_for_one() -> None:
    b = Builder()
    shape = b.const([0, 4], "shape")
    parts = [b.node("Reshape", b.node("GlobalAveragePool", b.conv("input", 3, 4)), shape) for _ in range(2)]
    model = Model(b.model(b.gemm(b.node("Concat", *parts, axis=1), 8, 3)))
    channels = trace(model)
    channels.remove({channels.groups[0].name: np.array([3])})
    reshapes = [n for n in model.graph.nodes if n.op == "Reshape"]
    assert [n.inputs[1].values.tolist() for n in reshapes] == [[0, 3], [0, 4]]
    model.finished()


def test_a_weight_that_another_conv_reads_too_shrinks_for_one() -> None:
    b = Builder()
    weight = b.const(b.normal(3, 3, 3, 3), "shared")
    x = b.node("Conv", b.node("Conv", "input", weight, pads=[1] * 4), weight, pads=[1] * 4)
    model = Model(b.model(b.conv(x, 3, 2)))
    channels = trace(model)
    channels.remove({channels.groups[0].name: np.array([1])})
    done = model.finished()
    first, second = done.graph.node[:2]
    shapes = {t.name: tuple(t.dims) for t in done.graph.initializer}
    assert (shapes[first.input[1]], shapes[second.input[1]]) == ((2, 3, 3, 3), (3, 2, 3, 3))


# What is not understood is closed, and says why


def test_an_operator_without_a_rule_closes_its_group_and_no_other() -> None:
    b = Builder()
    x = b.node("LpNormalization", b.conv(b.conv("input", 3, 4, at="/a"), 4, 4, at="/b"), at="/norm", axis=1)
    closed = closed_by(b, b.conv(x, 4, 4, at="/c"))
    assert closed["/a/Conv"] is None
    assert closed["/b/Conv"] == "operator LpNormalization (node '/norm/LpNormalization') has no rule"
    assert closed["/c/Conv"] == "it is the model's output '/c/Conv_output_0'"


@pytest.mark.parametrize("op", ["Relu", "Swirl"])
def test_an_operator_of_a_custom_domain_closes_its_group_whatever_its_name(op: str) -> None:
    b = Builder()
    x = b.node(op, b.conv("input", 3, 4, at="/a"), domain="com.example", at="/x")
    model = Model(b.model({b.conv(x, 4, 4): ["N", 4, 8, 8]}))
    assert trace(model).groups[0].closed == f"operator {op} (node '/x/{op}') has no rule"


def test_an_operator_between_two_stages_closes_both() -> None:
    b = Builder()
    x = b.conv("input", 3, 4, at="/a")
    y = b.node("Add", b.node("Softmax", x, axis=1), b.conv(x, 4, 4, at="/b"))
    closed = closed_by(b, b.conv(y, 4, 4, at="/c"))
    assert closed["/a/Conv"] == "operator Softmax (node '/Softmax') has no rule"
    assert closed["/b/Conv"] == "Add node '/Add' combines channels with '/Softmax_output_0', which carries none"


def test_a_tensor_that_is_also_an_output_is_closed() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 4, at="/a"))
    closed = closed_by(b, [b.conv(x, 4, 4, at="/b"), x])
    assert closed["/a/Conv"] == "it is the model's output '/Relu_output_0'"


def test_channels_that_nothing_consumes_are_closed() -> None:
    b = Builder()
    x = b.conv("input", 3, 4, at="/a")
    y = b.conv("input", 3, 4, at="/b")
    size = b.node("Cast", b.node("Shape", x), to=TensorProto.FLOAT)
    z = b.node("Mul", b.node("ReduceMean", b.conv(y, 4, 4, at="/c"), keepdims=0), size)
    assert closed_by(b, z)["/a/Conv"] == "no layer with constant weights reads it"


def test_channels_that_the_inside_of_an_if_reads_are_closed() -> None:
    normal = Builder().normal
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] input, bool turn) => (float[N,2,8,8] output) {
            x = Conv<pads = [1, 1, 1, 1]>(input, w)
            y = Conv<pads = [1, 1, 1, 1]>(x, v)
            output = If(turn) <
                then_branch = yes () => (float[N,2,8,8] a) { t = Neg(x)  a = Conv<pads = [1, 1, 1, 1]>(t, v) },
                else_branch = no () => (float[N,2,8,8] b) { b = Relu(y) }
            >
        }""",
        w=normal(4, 3, 3, 3),
        v=normal(2, 4, 3, 3),
    )
    reasons = [g.closed for g in trace(normalise(proto)).groups]
    assert reasons == ["it is read inside the If node 'If:output'"] * 2


def a_product_of_activations(b: Builder, x: str) -> str:
    return b.node("MatMul", x, b.node("Transpose", x, perm=[0, 1, 3, 2]))


def a_matmul_along_the_width(b: Builder, x: str) -> str:
    return b.node("MatMul", x, b.const(b.normal(8, 8)))


def a_sum_over_channels(b: Builder, x: str) -> str:
    return b.node("ReduceSum", x, b.const([1]))


def a_sum_over_channels_from_the_end(b: Builder, x: str) -> str:
    return b.node("ReduceSum", x, b.const([-3]))


def a_sum_over_everything(b: Builder, x: str) -> str:
    return b.node("ReduceSum", x)


def a_sum_over_everything_with_empty_axes(b: Builder, x: str) -> str:
    return b.node("ReduceSum", x, b.const(np.zeros(0, np.int64)))


def a_slice_of_channels(b: Builder, x: str) -> str:
    return b.node("Slice", x, b.const([0]), b.const([2]), b.const([-3]))


def a_slice_without_axes(b: Builder, x: str) -> str:
    return b.node("Slice", x, b.const([0, 1]), b.const([INT_MAX, 3]))


def reflected_channels(b: Builder, x: str) -> str:
    return b.node("Pad", x, b.const([0, 1, 0, 0, 0, 1, 0, 0]), mode="reflect")


def cropped_channels(b: Builder, x: str) -> str:
    return b.node("Pad", x, b.const([0, -1, 0, 0, 0, 0, 0, 0]))


def computed_pads(b: Builder, x: str) -> str:
    return b.node("Pad", x, b.node("Mul", b.node("Shape", x), b.const([0] * 4)))


def pads_of_axes_in_another_order(b: Builder, x: str) -> str:
    return b.node("Pad", x, b.const([1, 0, 0, 0, 1, 0, 0, 0]), "", b.const([1, 0, 2, 3]))


def a_concat_with_the_image(b: Builder, x: str) -> str:
    return b.node("Concat", x, "input", axis=1)


def a_channel_shuffle(b: Builder, x: str) -> str:
    y = b.node("Transpose", b.node("Reshape", x, b.const([0, 2, 2, 8, 8])), perm=[0, 2, 1, 3, 4])
    return b.node("Reshape", y, b.const([0, 4, 8, 8]))


def channels_as_a_batch(b: Builder, x: str) -> str:
    return b.node("Reshape", x, b.const([-1, 1, 8, 8]))


def channels_first_then_reshaped(b: Builder, x: str) -> str:
    return b.node("Reshape", b.node("Transpose", x, perm=[1, 0, 2, 3]), b.const([0, -1]))


def channels_first_then_flattened(b: Builder, x: str) -> str:
    return b.node("Flatten", b.node("Transpose", x, perm=[1, 0, 2, 3]))


def a_computed_reshape(b: Builder, x: str) -> str:
    return b.node("Reshape", x, b.node("Shape", x))


def flattened_from_axis_two(b: Builder, x: str) -> str:
    return b.node("Flatten", x, axis=2)


def a_squeeze_of_whatever_is_one(b: Builder, x: str) -> str:
    return b.node("Reshape", b.node("Squeeze", b.node("GlobalAveragePool", x)), b.const([-1, 4]))


def a_pool_over_transposed_channels(b: Builder, x: str) -> str:
    return b.node("GlobalAveragePool", b.node("Transpose", x, perm=[0, 2, 3, 1]))


def a_conv_over_transposed_channels(b: Builder, x: str) -> str:
    return b.conv(b.node("Transpose", x, perm=[0, 2, 3, 1]), 8, 4)


def a_sum_of_channels_and_rows(b: Builder, x: str) -> str:
    vector = b.node("Reshape", b.node("GlobalAveragePool", x), b.const([0, 4]))
    return b.node("Add", b.node("AveragePool", x, kernel_shape=[1, 5]), vector)  # N×4×8×4 and N×4


def a_constant_of_higher_rank(b: Builder, x: str) -> str:
    return b.node("Mul", x, b.const(b.normal(2, 1, 1, 1, 1)))


def pooling_with_indices(b: Builder, x: str) -> str:
    values = b.node("MaxPool", x, kernel_shape=[2, 2], outputs=2)
    return b.node("Add", values, b.node("Cast", values.replace("_0", "_1"), to=TensorProto.FLOAT))


def batch_norm_with_computed_statistics(b: Builder, x: str) -> str:
    one, mean = b.const(np.ones(4, np.float32)), b.node("ReduceMean", x, axes=[0, 2, 3], keepdims=0)
    return b.node("BatchNormalization", x, one, one, mean, one)


def a_conv_with_computed_weights(b: Builder, x: str) -> str:
    return b.node("Conv", x, b.node("Mul", b.const(b.normal(4, 4, 1, 1)), b.node("ReduceMean", "input")))


def a_transposed_gemm(b: Builder, x: str) -> str:
    y = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.node("Gemm", y, b.const(b.normal(2, 5)), transA=1)


CLOSING = {
    a_product_of_activations: "multiplies by something else than a constant matrix",
    a_matmul_along_the_width: "reads channels along another axis than the last",
    a_sum_over_channels: "ReduceSum node '/ReduceSum' reduces over channels",
    a_sum_over_channels_from_the_end: "reduces over channels",
    a_sum_over_everything: "reduces over channels",
    a_sum_over_everything_with_empty_axes: "reduces over channels",
    a_slice_of_channels: "Slice node '/Slice' slices channels",
    a_slice_without_axes: "slices channels, or has computed axes",
    reflected_channels: "crops channels or pads them by mode 'reflect'",
    cropped_channels: "crops channels or pads them by mode 'constant'",
    computed_pads: "has computed pads",
    pads_of_axes_in_another_order: "or pads of some axes only",
    a_concat_with_the_image: "joins channels with a tensor that carries none",
    a_channel_shuffle: "spreads channels over several axes",
    channels_as_a_batch: "mixes channels with the batch",
    channels_first_then_reshaped: "mixes channels with the batch",
    channels_first_then_flattened: "or an axis other than 1",
    a_computed_reshape: "has a computed or unknown shape",
    flattened_from_axis_two: "or an axis other than 1",
    a_squeeze_of_whatever_is_one: "has no constant axes",
    a_pool_over_transposed_channels: "reads channels along another axis than 1",
    a_conv_over_transposed_channels: "reads channels along another axis than 1",
    a_sum_of_channels_and_rows: "broadcasts one activation's channels over another's",
    a_constant_of_higher_rank: "broadcasts channels against the constant",
    pooling_with_indices: "the second output of MaxPool node '/MaxPool' is read",
    batch_norm_with_computed_statistics: "reduces over channels|has no constant statistics",
    a_conv_with_computed_weights: "cannot be changed: its weights are computed, not constant",
    a_transposed_gemm: r"its input is transposed \(transA = 1\)",
}


@pytest.mark.parametrize("build", CLOSING, ids=lambda f: f.__name__)
def test_a_use_that_channels_cannot_be_followed_through_closes_them(build) -> None:
    b = Builder(opset=18 if build is pads_of_axes_in_another_order else 17)
    x = b.conv("input", 3, 4, at="/a")
    b.conv(x, 4, 4, at="/reader")  # so that they would be open otherwise
    y = build(b, x)
    image = (2, 3, 8, 8) if build is a_transposed_gemm else ("N", 3, 8, 8)
    groups = {g.name: g.closed for g in trace(Model(b.model(y, image))).groups}
    assert re.search(CLOSING[build], str(groups["/a/Conv"]))


def test_indices_of_a_pool_that_are_an_output_close_its_channels() -> None:
    b = Builder()
    values = b.node("MaxPool", b.conv("input", 3, 4, at="/a"), kernel_shape=[2, 2], outputs=2)
    indices = values.replace("_0", "_1")
    assert (
        closed_by(b, [b.conv(values, 4, 4), indices])["/a/Conv"]
        == "the second output of MaxPool node '/MaxPool' is read"
    )


def test_a_grouped_conv_over_the_image_is_closed() -> None:
    b = Builder()
    x = b.conv("input", 3, 6, group=3, at="/a")
    assert "is grouped over channels that cannot be removed" in closed_by(b, b.conv(x, 6, 2))["/a/Conv"]


# Removal


def test_removing_all_channels_of_a_layer_is_refused_and_changes_nothing() -> None:
    model = normalise(resnet((1, 1), (4, 8)))
    channels, digest = trace(model), model.digest()
    stage = channels.groups[0]
    middle = stage.members("produces")[0][1]
    for classes in (np.arange(stage.size), middle):
        with pytest.raises(ModelError, match=r"would leave node '/.*' without channels: remove fewer"):
            channels.remove({stage.name: classes})
    assert model.digest() == digest


def test_removing_from_a_closed_or_unknown_group_is_refused() -> None:
    model = normalise(resnet((1,), (4,)))
    channels, digest = trace(model), model.digest()
    with pytest.raises(ModelError, match="'linear/Gemm' cannot be pruned: it is the model's output 'logits'"):
        channels.remove({"/conv1/Conv": np.array([0]), "linear/Gemm": np.array([0])})
    with pytest.raises(ModelError, match="'/nowhere/Conv' cannot be pruned: unknown"):
        channels.remove({"/nowhere/Conv": np.array([0])})
    assert model.digest() == digest


def test_removing_nothing_changes_nothing() -> None:
    model = normalise(resnet((1, 1), (4, 8)))
    channels, digest = trace(model), model.digest()
    channels.remove({})
    channels.remove({channels.groups[0].name: np.zeros(0, int)})
    assert model.digest() == digest


def test_an_empty_bias_does_not_stand_in_the_way() -> None:
    b = Builder()
    x = b.node("Conv", "input", b.const(b.normal(4, 3, 3, 3)), "", at="/a")
    model = Model(b.model(b.conv(x, 4, 2)))
    channels = trace(model)
    channels.remove({"/a/Conv": np.array([2])})
    assert model.graph.nodes[0].inputs[1].shape == (3, 3, 3, 3)
    model.finished()


def test_the_size_of_the_input_must_be_known_or_given() -> None:
    b = Builder()
    x = b.node("Flatten", b.conv("input", 3, 4, at="/a"))
    model = Model(b.model(b.gemm(x, 4 * 64, 5), ("N", 3, "H", "W")))
    with pytest.raises(ModelError, match=r"'input' has unknown dimensions .*: state the input size"):
        trace(model)
    assert trace(model, {"input": (1, 3, 8, 8)}).groups[0].closed is None


# Rules


def test_a_second_rule_for_an_operator_is_refused() -> None:
    before = rules()
    with pytest.raises(ValueError, match="operator Conv has a channel rule already"):
        register("Brand", "Conv")(lambda node, tracer: None)
    assert rules() == before


def test_a_rule_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of CONTRIBUTING.md."""
    rules()
    monkeypatch.setattr(tracing, "_RULES", dict(tracing._RULES))

    @register("PRelu")
    def prelu(node: gs.Node, tracer: tracing.Tracer) -> None:
        ids = tracer.axis_ids(node.inputs[0], 1)
        tracer.slots.append(tracing.Slot(node, 1, 0, "follows", ids))
        tracer.ids[node.outputs[0].name] = tracer.ids[node.inputs[0].name]

    b = Builder()
    x = b.node("PRelu", b.conv("input", 3, 4, at="/a"), b.const(b.normal(4, 1, 1)))
    model = Model(b.model(b.conv(x, 4, 2)))
    channels = trace(model)
    silence(channels.groups[0], np.array([1, 3]))
    expected = run(model.finished(), images(2, 8))
    channels.remove({"/a/Conv": np.array([1, 3])})
    assert_same(run(model.finished(), images(2, 8)), expected)
    assert model.graph.nodes[1].inputs[1].shape == (2, 1, 1)
