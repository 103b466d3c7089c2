"""Channel groups: what is found to go together does, and channels that are zero go without a trace.

The property below is how an operator's rule is proved: draw a graph out of the operators that have one, make the
channels of some classes zero, remove them, and compare what onnxruntime computes before and after.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from drawing import HEADS, STEPS, graphs
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from zoo import Builder, assert_same, images, pad_channels, parsed, resnet, run

from passes.channels import ChannelGroup, Channels, Slot, registry, trace
from passes.channels.registry import DEFAULT, Rule, register, rules
from passes.channels.tracing import Tracer
from passes.core.declined import Declined, Why
from passes.core.errors import ModelError
from passes.graph.cost import total
from passes.graph.model import Model
from passes.graph.protos import check
from passes.normal_form.normalise import normalise


def silence(group: ChannelGroup, classes: np.ndarray) -> None:
    """Make some channels zero: what produces them, and what is added to them on the way."""
    for slot, of in zip(group.slots, group.classes, strict=True):
        norm = slot.node.op.endswith("Normalization") and slot.index in (1, 2)
        adds = slot.node.op in ("Conv", "ConvTranspose", "Gemm", "Add", "Sub")
        if slot.role == "produces" or (slot.role == "follows" and (norm or adds)):
            clear(slot, np.isin(of, classes))


def mask(group: ChannelGroup, classes: np.ndarray) -> None:
    """Make all layers that read some channels blind to them."""
    for slot, of in group.members("consumes"):
        clear(slot, np.isin(of, classes))


def clear(slot: Slot, entries: np.ndarray) -> None:
    old = slot.node.inputs[slot.index]
    values = np.array(old.values)
    np.moveaxis(values, slot.axis, 0)[entries] = 0
    slot.node.inputs[slot.index] = gs.Constant(f"{old.name}~{slot.node.name}:{slot.index}", values)


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
    """Whether a constant or an activation would lose its last entry."""
    parts = (np.isin(of, removed[g.name]) for g in channels.groups if g.name in removed for of in g.parts)
    after = shrunk(channels, removed, before)
    return any(0 in after[k] and 0 not in shape for k, shape in before.items()) or any(p.all() for p in parts)


# What may close a group of a drawn graph: no rule is missing, but some uses mix or drop channels.
MAY_CLOSE = "the model's output|no layer with constant weights reads it|InstanceNormalization node '.*' reads channels"
# Behind an InstanceNormalization that normalises channels together there are none to follow.
BEHIND_ONE = f"{MAY_CLOSE}|Concat node '.*' joins channels with a tensor that carries none"
# In split attention, where one channel is left of each of the two halves, the axis of the halves is the only one that
# could be of channels.
OF_ONE = "(Softmax|ReduceSum) node 'radix.*' (mixes|reduces over) channels"


@pytest.mark.parametrize("hide", [silence, mask], ids=["zeros", "masked"])
@pytest.mark.parametrize("part", [*STEPS, *HEADS])
def test_removing_channels_that_do_not_matter_changes_nothing(part: str, hide: Callable) -> None:
    compared: list[str] = []

    @settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def each(data: st.DataObject) -> None:
        proto = data.draw(graphs(part, hide is silence))
        feeds = images(2, proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value)[..., :6]
        model = Model(proto)
        model.graph.cleanup()
        if any(n.op_type == "Constant" for n in proto.graph.node) or data.draw(st.booleans()):
            model = normalise(proto)
            assert_same(run(model.finished(), feeds), run(proto, feeds), 3e-5)
        for _ in range(2):  # what has been pruned once can be pruned again
            together = any(n.op == "InstanceNormalization" for n in model.graph.nodes)
            may_close = BEHIND_ONE if together else MAY_CLOSE
            channels = trace(model)
            for group in channels.groups:
                reasons = may_close if group.size > 2 else f"{may_close}|{OF_ONE}"
                assert group.size == 1 or group.closed is None or re.search(reasons, group.closed), group.closed
                for slot, of in zip(group.slots, group.classes, strict=True):
                    assert len(of) == len(slot.ids) == slot.node.inputs[slot.index].shape[slot.axis], str(slot)
            groups = [g for g in channels.groups if g.closed is None and g.size > 1]
            assume(groups)
            removed = {}
            for group in data.draw(
                st.lists(st.sampled_from(groups), min_size=1, max_size=2, unique_by=lambda g: g.name)
            ):
                classes = st.sets(st.integers(0, group.size - 1), min_size=1, max_size=group.size - 1)
                removed[group.name] = np.array(sorted(data.draw(classes)))
                hide(group, removed[group.name])
            expected, before, cost = run(model.finished(), feeds), sizes(model), total(model)
            if gone_after(channels, removed, before):
                digest = model.digest()
                with pytest.raises(ModelError, match=r"would leave (node|tensor) '.+' without channels: remove fewer"):
                    channels.remove(removed)
                assert model.digest() == digest
                return
            channels.remove(removed)
            done = model.finished()
            check(done)
            assert_same(run(done, feeds), expected, 3e-5)
            traced = {(s.node.name, s.index) for g in channels.groups for s in g.slots}
            after = {k: shape for k, shape in shrunk(channels, removed, before).items() if k in traced}
            assert {k: shape for k, shape in sizes(model).items() if k in traced} == after
            assert total(model).parameters < cost.parameters
            assert total(model).macs < cost.macs
            compared.append(part)

    each()
    assert compared  # not all examples were refused


def as_type(b: Builder, op: str, x: str, kind: int, *others: str, **attributes) -> str:
    """An operator on another element type, from and to float; its values are 0 to 9."""
    y = b.node("Cast", b.node("Mul", b.node("Sigmoid", x), b.const(np.float32(10))), to=kind)
    return b.node("Cast", b.node(op, y, *others, **attributes), to=TensorProto.FLOAT)


def compared(b: Builder, op: str, x: str) -> str:
    return b.node("Cast", b.node(op, x, b.const(b.normal(4, 1, 1))), to=TensorProto.FLOAT)


def logical(b: Builder, op: str, x: str) -> str:
    return as_type(b, op, x, TensorProto.BOOL, b.const(np.array([1, 0, 1, 0], bool).reshape(4, 1, 1)))


def bitwise(b: Builder, op: str, x: str) -> str:
    attributes = {"direction": "LEFT"} if op == "BitShift" else {}
    return as_type(
        b, op, x, TensorProto.UINT8, b.const(np.array([1, 2, 3, 1], np.uint8).reshape(4, 1, 1)), **attributes
    )


def within_one(b: Builder, op: str, x: str) -> str:
    return b.node(op, b.node("Mul", b.node("Sigmoid", x), b.const(np.float32(0.9))))


def of_rows(b: Builder, op: str, x: str) -> str:
    return b.node(op, x, axis=2)


def reduced(b: Builder, op: str, x: str) -> str:
    return b.node(op, b.node("Abs", x), b.const([2]))


# Operators that the drawn graphs leave out, each between two Convs of four channels.
ALONE: dict[str, Callable[[Builder, str, str], str]] = {
    **dict.fromkeys(["Acos", "Asin", "Atanh", "Tan", "Exp", "Log", "Reciprocal"], within_one),
    "Acosh": lambda b, op, x: b.node(op, b.node("Exp", b.node("Abs", x))),
    "CastLike": lambda b, op, x: b.node(op, x, b.const(np.float32(0))),
    **dict.fromkeys(["IsInf", "IsNaN"], lambda b, op, x: b.node("Cast", b.node(op, x), to=TensorProto.FLOAT)),
    "Not": lambda b, op, x: as_type(b, op, x, TensorProto.BOOL),
    "BitwiseNot": lambda b, op, x: as_type(b, op, x, TensorProto.UINT8),
    **dict.fromkeys(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"], compared),
    **dict.fromkeys(["And", "Or", "Xor"], logical),
    **dict.fromkeys(["BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"], bitwise),
    "Mod": lambda b, op, x: b.node(op, x, b.const(1 + np.abs(b.normal(4, 1, 1))), fmod=1),
    "Where": lambda b, op, x: b.node(op, b.const(np.ones((4, 1, 1), bool)), x, b.const(b.normal(4, 1, 1))),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization"], of_rows),
    "CumSum": lambda b, op, x: b.node(op, x, b.const(np.int64(3))),
    "LayerNormalization": lambda b, op, x: b.node(op, x, b.const(b.normal(8)), axis=-1),
    "RMSNormalization": lambda b, op, x: b.node(op, x, b.const(b.normal(8, 8)), axis=2),
    "MeanVarianceNormalization": lambda b, op, x: b.node(op, x, axes=[0, 2, 3]),
    "Swish": lambda b, op, x: b.node(op, x),
    "GlobalLpPool": lambda b, op, x: b.node(op, x),
    **dict.fromkeys([op for op in rules() if op.startswith("Reduce")], reduced),
    **dict.fromkeys(["ArgMax", "ArgMin"], lambda b, op, x: b.node("Cast", b.node(op, x, axis=3), to=TensorProto.FLOAT)),
}


@pytest.mark.parametrize("op", ALONE)
def test_an_operator_alone_passes_channels_on(op: str) -> None:
    b = Builder(opset={"RMSNormalization": 23, "Swish": 24}.get(op, 20))
    x = ALONE[op](b, op, b.conv("input", 3, 4, at="/a"))
    model = Model(b.model({b.conv(x, 4, 2): ["N", 2, "H", "W"]}))
    channels = trace(model)
    group = channels.groups[0]
    assert group.closed is None
    mask(group, np.array([1, 2]))
    expected = run(model.finished(), images(2, 8))
    channels.remove({group.name: np.array([1, 2])})
    assert_same(run(model.finished(), images(2, 8)), expected)


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
    assert [of.tolist() for _, of in group.members("produces")] == [[0, 1, 2, 3]]
    assert [of.tolist() for _, of in group.members("consumes")] == [[0, 0, 1, 1, 2, 2, 3, 3]]
    channels.remove({group.name: np.array([0, 2])})
    depthwise = model.graph.nodes[1]
    assert depthwise.attrs["group"] == 2
    assert depthwise.inputs[1].shape == (4, 1, 3, 3)
    model.finished()


def test_the_groups_of_a_grouped_conv_go_as_a_whole() -> None:
    b = Builder()
    x = b.conv(b.conv("input", 3, 6, at="/a"), 6, 9, group=3, at="/g")
    model = Model(b.model(b.conv(x, 9, 2, at="/b")))
    channels = trace(model)
    group, _ = channels.groups
    assert [of.tolist() for _, of in group.members("produces")] == [[0, 0, 1, 1, 2, 2]]
    assert [of.tolist() for _, of in group.members("consumes")] == [[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    channels.remove({group.name: np.array([1])})
    grouped = model.graph.nodes[1]
    assert (grouped.attrs["group"], grouped.inputs[1].shape) == (2, (6, 2, 3, 3))
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


def test_a_weight_that_reads_the_image_and_channels_stays_as_it_is() -> None:
    """The image has no channels to lose, so the second Conv keeps its inputs; the outputs of both go together."""
    b = Builder()
    weight = b.const(b.normal(3, 3, 3, 3), "shared")
    x = b.node("Conv", b.node("Conv", "input", weight, pads=[1] * 4), weight, pads=[1] * 4)
    model = Model(b.model(b.conv(x, 3, 2)))
    (group,) = trace(model).groups[:1]
    assert group.closed == "the weights that '/Conv', '/Conv_1' share cannot lose these channels for all of them"


def test_a_conv_applied_twice_loses_the_same_inputs_and_outputs() -> None:
    b = Builder()
    weight = b.const(b.normal(4, 4, 3, 3), "shared")
    x = b.node("Relu", b.conv("input", 3, 4, at="stem"))
    for _ in range(2):
        x = b.node("Relu", b.node("Conv", x, weight, pads=[1] * 4))
    model = Model(b.model(b.conv(x, 4, 2, at="head")))
    channels = trace(model)
    assert [g.name for g in channels.groups if not g.closed] == ["stem/Conv"]
    channels.remove({"stem/Conv": np.array([1])})
    shapes = {t.name: tuple(t.dims) for t in model.finished().graph.initializer}
    assert sorted(shapes.values()) == [(2,), (2, 3, 3, 3), (3,), (3, 3, 3, 3), (3, 3, 3, 3)]


def test_depthwise_convs_that_share_a_weight_lose_the_same_groups() -> None:
    b = Builder()
    weight, last = b.const(b.normal(4, 1, 3, 3), "depthwise"), b.const(b.normal(2, 4, 1, 1), "last")
    tops = [b.conv(x, 3, 4, at=at) for at, x in (("a", "input"), ("b", b.node("Neg", "input")))]
    ends = [b.node("Conv", b.node("Conv", x, weight, pads=[1] * 4, group=4), last) for x in tops]
    model = Model(b.model(b.node("Sub", *ends)))
    channels = trace(model)
    channels.remove({"a/Conv": np.array([0, 3])})
    done = model.finished()
    assert [a.i for n in done.graph.node for a in n.attribute if a.name == "group"].count(2) == 2
    assert {"depthwise": [2, 1, 3, 3], "last": [2, 2, 1, 1]}.items() <= {
        t.name: list(t.dims) for t in done.graph.initializer
    }.items()


def test_a_fixed_filter_that_is_stored_once_ties_nothing() -> None:
    b = Builder()
    blur = b.const(np.full((4, 1, 3, 3), 1 / 9, np.float32), "blur")
    x = b.node("Conv", b.conv("input", 3, 4, at="a"), blur, pads=[1] * 4, group=4)
    x = b.node("Conv", b.conv(x, 4, 4, at="b"), blur, pads=[1] * 4, group=4)
    assert [g.name for g in trace(Model(b.model(b.conv(x, 4, 2)))).groups if not g.closed] == ["a/Conv", "b/Conv"]


# What is not understood is closed, and says why


def test_an_operator_without_a_rule_closes_its_group_and_no_other() -> None:
    b = Builder()
    x = b.node("Det", b.conv(b.conv("input", 3, 4, at="/a"), 4, 4, at="/b"), at="/norm")
    x = b.node("Unsqueeze", x, b.const([2, 3]))
    closed = closed_by(b, b.conv(x, 4, 4, at="/c"))
    assert closed["/a/Conv"] is None
    assert closed["/b/Conv"] == "operator Det (node '/norm/Det') has no rule"
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
    assert closed["/a/Conv"] == "Softmax node '/Softmax' mixes channels"
    assert closed["/b/Conv"] == "Add node '/Add' combines channels with '/Softmax_output_0', which cannot lose any"


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
    assert closed_by(b, z)["/a/Conv"] == "Mul node '/Mul' computes with a number of channels"


def test_groups_that_a_layer_reads_together_can_be_joined() -> None:
    """The classes of a joined group are those of its parts, and are removed one by one as before."""
    b = Builder()
    parts = [b.node("Relu", b.conv("input", 3, width, at=f"/{width}")) for width in (4, 6, 5)]
    x = b.conv(b.node("Concat", *parts[:2], "input", axis=1), 13, 4, at="/a")
    y = b.conv(b.node("Concat", parts[1], parts[2], axis=1), 11, 4, at="/b")
    model = Model(b.model(b.conv(b.node("Mul", x, y), 4, 2, at="/c")))
    channels = trace(model)
    opened = {g.name for g in channels.groups if g.closed is None}
    joined = channels.joined(opened)
    assert [(g.name, g.size) for g in joined.groups if g.name in opened] == [("/4/Conv", 15), ("/a/Conv", 4)]
    assert [(g.name, g.size) for g in channels.joined(opened - {"/6/Conv"}).groups] == [
        (g.name, g.size) for g in channels.groups
    ]
    group = joined.groups[0]
    assert {tuple(ids) for ids in group.ids} == {tuple(ids) for g in channels.groups[:3] for ids in g.ids}
    removed = np.array([1, 5, 14])
    mask(group, removed)
    expected = run(model.finished(), images(2, 8))
    joined.remove({group.name: removed})
    assert_same(run(model.finished(), images(2, 8)), expected)
    assert [sizes(model)[f"/{w}/Conv", 1][0] for w in (4, 6, 5)] == [3, 5, 4]
    with pytest.raises(ModelError, match="node '/4/Conv' without channels"):
        joined.remove({group.name: np.arange(4)})


def test_a_weight_that_two_convs_share_stays_shared_where_both_keep_the_same_channels() -> None:
    """One backbone called on both halves of the input, whose difference ties the two."""
    b = Builder()
    first, second, third = (b.normal(*shape, scale=0.3) for shape in ((6, 3, 3, 3), (4, 6, 1, 1), (4, 6, 1, 1)))
    second[:, [2, 4]] = third[:, [2, 4]] = 0
    shared = [b.const(values, "shared") for values in (first, second)]
    tops = [b.node("Relu", b.node("Conv", x, shared[0], pads=[1] * 4)) for x in ("input", b.node("Neg", "input"))]
    ends = [b.node("Conv", x, shared[1]) for x in tops]
    proto = b.model(b.node("Sum", *ends, b.node("Conv", b.node("Sub", *tops), b.const(third))))
    model = Model(proto)
    channels = trace(model)
    channels.remove({channels.groups[0].name: np.array([2, 4])})
    done = model.finished()
    assert_same(run(done, images(2, 8)), run(proto, images(2, 8)))
    assert sorted(list(t.dims) for t in done.graph.initializer) == [[4, 3, 3, 3], [4, 4, 1, 1], [4, 4, 1, 1]]
    assert total(model).parameters == 4 * 27 + 2 * 16


def sliced_in_halves(b: Builder, x: str) -> str:
    """`x.chunk(2, 1)`, the halves in the other order."""
    c = b.node("Gather", b.node("Shape", x), b.const([1]))
    half = b.node("Mul", b.node("Div", b.node("Add", c, b.const([1])), b.const([2])), b.const([1]))
    axis = b.const([1])
    first = b.node("Slice", x, b.const([0]), half, axis)
    return b.node("Concat", b.node("Slice", x, half, b.node("Mul", half, b.const([2])), axis), first, axis=1)


def split_by_a_difference(b: Builder, x: str) -> str:
    c = b.node("Gather", b.node("Shape", x), b.const([1]))
    sizes = b.node("Concat", b.const([1]), b.node("Sub", c, b.const([1])), axis=0)
    y = b.node("Split", x, sizes, axis=1, outputs=2)
    return b.node("Concat", y[:-1] + "1", y, axis=1)


def shuffled_by_a_quotient(b: Builder, x: str) -> str:
    """A channel shuffle of two groups with `c // 2` in the target shape, on the axis that the tracing does not pick."""
    n, c, h, w = (b.node("Gather", b.node("Shape", x), b.const([i])) for i in range(4))
    half = b.node("Div", c, b.const([2]))
    y = b.node("Reshape", x, b.node("Concat", n, b.const([2]), half, h, w, axis=0))
    y = b.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    return b.node("Reshape", y, b.node("Concat", n, c, h, w, axis=0))


def in_groups_of_a_quotient(b: Builder, x: str) -> str:
    """The same with more groups than channels in each, so that the quotient is the size of the axis left alone."""
    n, c, h, w = (b.node("Gather", b.node("Shape", x), b.const([i])) for i in range(4))
    width = b.node("Div", c, b.const([4]))
    y = b.node("Reshape", x, b.node("Concat", n, b.const([4]), width, h, w, axis=0))
    return b.node("Reshape", b.node("Relu", y), b.node("Concat", n, b.node("Mul", width, b.const([4])), h, w, axis=0))


def divided_by_their_number(b: Builder, x: str) -> str:
    return b.node("Div", x, b.node("Cast", b.node("Gather", b.node("Shape", x), b.const([1])), to=TensorProto.FLOAT))


def divided_by_the_root_of_their_number(b: Builder, x: str) -> str:
    c = b.node("Cast", b.node("Gather", b.node("Shape", x), b.const([1])), to=TensorProto.FLOAT)
    return b.node("Mul", x, b.node("Div", b.const(np.float32(1)), b.node("Sqrt", c)))


def resized_by_computed_sizes(b: Builder, x: str) -> str:
    n, c, h, w = (b.node("Gather", b.node("Shape", x), b.const([i])) for i in range(4))
    rows = b.node("Mul", h, b.const([2]))
    sizes = b.node("Concat", n, b.node("Div", b.node("Mul", c, b.const([2])), b.const([2])), rows, w, axis=0)
    return b.node("Resize", x, "", "", sizes)


ARITHMETIC = [
    sliced_in_halves,
    split_by_a_difference,
    shuffled_by_a_quotient,
    in_groups_of_a_quotient,
    divided_by_their_number,
    divided_by_the_root_of_their_number,
    resized_by_computed_sizes,
]


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("build", ARITHMETIC, ids=lambda f: f.__name__)
def test_arithmetic_on_numbers_of_channels_is_evaluated(build: Callable[[Builder, str], str], constants: bool) -> None:
    b = Builder(opset=17, constants=constants)
    x = b.conv("input", 3, 8, at="/a")
    model = normalise(b.model({b.conv(build(b, x), 8, 2, at="/b"): ["N", 2, "H", "W"]}))
    channels = trace(model)
    group = channels.groups[0]
    assert (group.closed, group.size) == (None, {shuffled_by_a_quotient: 4, in_groups_of_a_quotient: 4}.get(build, 8))
    removed = np.array([1, 3])
    mask(group, removed)
    expected = run(model.finished(), images(3, 8))
    channels.remove({group.name: removed})
    done = model.finished()
    check(done)
    assert_same(run(done, images(3, 8)), expected)
    assert sizes(model)["/a/Conv", 1][0] == 8 - 2 * (8 // group.size)


def test_a_number_of_channels_that_is_read_elsewhere_keeps_its_value() -> None:
    """Half of one tensor's channels are cut out of another tensor, which loses none."""
    b = Builder()
    x = b.conv("input", 3, 8, at="/a")
    half = b.node("Div", b.node("Gather", b.node("Shape", x), b.const([1])), b.const([2]))
    y = b.node("Slice", b.conv("input", 3, 6, at="/b"), half, b.const([6]), b.const([1]))
    z = b.node("Add", b.conv(x, 8, 2, at="/c"), b.conv(y, 2, 2, at="/d"))
    model = normalise(b.model(z))
    channels = trace(model)
    groups = {g.name: g for g in channels.groups}
    mask(groups["/a/Conv"], np.array([0, 5]))
    expected = run(model.finished(), images(2, 8))
    channels.remove({"/a/Conv": np.array([0, 5])})
    assert_same(run(model.finished(), images(2, 8)), expected)


def test_channels_that_no_layer_reads_are_closed() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 4, at="/a"))
    weight = b.node("Mul", b.const(b.normal(2, 4, 1, 1)), b.node("ReduceMean", "input"))
    b.node("Neg", x)
    assert closed_by(b, b.node("Conv", "input", weight[:0] or b.const(b.normal(2, 3, 1, 1))))["/a/Conv"] == (
        "no layer with constant weights reads it"
    )


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
    assert reasons == ["operator If (node 'If:output') has no rule"] * 2


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


def a_slice_with_a_step(b: Builder, x: str) -> str:
    return b.node("Slice", x, b.const([0]), b.const([4]), b.const([-3]), b.const([2]))


def a_slice_with_computed_bounds(b: Builder, x: str) -> str:
    end = b.node("ReduceMax", b.node("Shape", "input"), keepdims=1)
    return b.node("Slice", x, b.const([0]), end, b.const([1]))


def one_channel_picked(b: Builder, x: str) -> str:
    return b.node("Gather", x, b.const(np.int64(1)), axis=1)


def softmax_over_channels(b: Builder, x: str) -> str:
    return b.node("Softmax", x, axis=1)


def local_response_normalisation(b: Builder, x: str) -> str:
    return b.node("LRN", x, size=3)


def layer_normalisation(b: Builder, x: str) -> str:
    return b.node("LayerNormalization", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.const(b.normal(4)))


def the_best_channel(b: Builder, x: str) -> str:
    return b.node("Cast", b.node("ArgMax", x, axis=1), to=TensorProto.FLOAT)


def divided_by_the_number_of_values(b: Builder, x: str) -> str:
    return b.node("Div", "input", b.node("Cast", b.node("Size", x), to=TensorProto.FLOAT))


def pads_of_one(b: Builder, x: str) -> str:
    """Channels of ones, added to those of a Conv."""
    y = b.node("Pad", x, b.const([0, 0, 0, 0, 0, 2, 0, 0]), b.const(np.float32(1)))
    return b.node("Add", y, b.conv("input", 3, 6))


def a_quantisation_by_blocks(b: Builder, x: str) -> str:
    scale, zero = b.const(np.ones((1, 2, 8, 8), np.float32)), b.const(np.zeros((1, 2, 8, 8), np.int8))
    y = b.node("QuantizeLinear", x, scale, zero, axis=1, block_size=2)
    return b.node("DequantizeLinear", y, scale, zero, axis=1, block_size=2)


def reflected_channels(b: Builder, x: str) -> str:
    return b.node("Pad", x, b.const([0, 1, 0, 0, 0, 1, 0, 0]), mode="reflect")


def computed_pads(b: Builder, x: str) -> str:
    return b.node("Pad", x, b.node("Mul", b.node("Shape", x), b.const([0] * 4)))


def channels_as_a_batch(b: Builder, x: str) -> str:
    return b.node("Reshape", x, b.const([-1, 1, 8, 8]))


def channels_first_then_reshaped(b: Builder, x: str) -> str:
    return b.node("Reshape", b.node("Transpose", x, perm=[1, 0, 2, 3]), b.const([0, -1]))


def channels_first_then_flattened(b: Builder, x: str) -> str:
    return b.node("Flatten", b.node("Transpose", x, perm=[1, 0, 2, 3]))


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
    a_product_of_activations: "multiplies by something other than a constant matrix",
    a_matmul_along_the_width: "reads channels along axis 1, not 3",
    a_sum_over_channels: "ReduceSum node '/ReduceSum' reduces over channels",
    a_sum_over_channels_from_the_end: "reduces over channels",
    a_sum_over_everything: "reduces over channels",
    a_sum_over_everything_with_empty_axes: "reduces over channels",
    a_slice_with_a_step: "Slice node '/Slice' selects channels with a step other than 1",
    a_slice_with_computed_bounds: "has computed ends",
    one_channel_picked: "selects channels by indices that are not a constant list",
    softmax_over_channels: "Softmax node '/Softmax' mixes channels",
    local_response_normalisation: "LRN node '/LRN' mixes channels",
    layer_normalisation: "mixes channels",
    the_best_channel: "ArgMax node '/ArgMax' reduces over channels",
    divided_by_the_number_of_values: "Size node '/Size' counts channels",
    pads_of_one: "Pad node '/Pad' adds them, with the value 1",
    a_quantisation_by_blocks: "works on blocks of channels",
    reflected_channels: "pads channels by mode 'reflect'",
    computed_pads: "Pad node '/Pad' has computed pads",
    channels_as_a_batch: "mixes channels with the batch",
    channels_first_then_reshaped: "moves the batch to another axis",
    channels_first_then_flattened: "moves the batch to another axis",
    flattened_from_axis_two: "mixes channels with the batch",
    a_squeeze_of_whatever_is_one: "has no axes, and so may drop the batch",
    a_pool_over_transposed_channels: "reads channels along axis 3, not 1",
    a_conv_over_transposed_channels: "reads channels along axis 3, not 1",
    a_sum_of_channels_and_rows: "combines activations whose channels do not line up|adds axes in front of the batch",
    a_constant_of_higher_rank: "adds axes in front of the batch",
    pooling_with_indices: "MaxPool node '/MaxPool' has a further output that is read",
    batch_norm_with_computed_statistics: "reduces over the batch",
    a_conv_with_computed_weights: "Conv node '/Conv' computes its parameters",
    a_transposed_gemm: "reads channels along axis 1, not 0",
}


@pytest.mark.parametrize("build", CLOSING, ids=lambda f: f.__name__)
def test_a_use_that_channels_cannot_be_followed_through_closes_them(build) -> None:
    b = Builder(opset=21 if build is a_quantisation_by_blocks else 17)
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
        == "MaxPool node '/MaxPool' has a further output that is read, '/MaxPool_output_1'"
    )


def test_a_grouped_conv_over_the_image_begins_no_channels() -> None:
    b = Builder()
    x = b.conv("input", 3, 6, group=3, at="/a")
    assert list(closed_by(b, b.conv(x, 6, 2, at="/b"))) == ["/b/Conv"]


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
    with pytest.raises(ModelError, match="there is no channel group '/nowhere/Conv': a group has the name of"):
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
        register("Brand", "Conv")(type(before["Relu"]))
    assert rules() == before


def test_a_rule_can_be_added_to_a_copy() -> None:
    """The recipe of CONTRIBUTING.md; the rules that others use stay as they are."""
    own = DEFAULT.without("PRelu").copy()

    @own.register("PRelu")
    class PRelu(Rule):
        """Passes channels on."""

        def trace(self, node: gs.Node, tracer: Tracer) -> None:
            tracer.slot(node, 1, 0, "follows", tracer.along(node.inputs[0], 1))
            tracer.pass_on(node)

    b = Builder()
    x = b.node("PRelu", b.conv("input", 3, 4, at="/a"), b.const(b.normal(4, 1, 1)))
    model = Model(b.model(b.conv(x, 4, 2)))
    channels = trace(model, rules=own)
    assert type(rules()["PRelu"]) is not PRelu
    assert trace(model, rules=DEFAULT.without("PRelu")).groups[0].declined == Declined(
        "/PRelu", Why.NO_RULE, "operator PRelu (node '/PRelu') has no rule"
    )
    silence(channels.groups[0], np.array([1, 3]))
    expected = run(model.finished(), images(2, 8))
    channels.remove({"/a/Conv": np.array([1, 3])})
    assert_same(run(model.finished(), images(2, 8)), expected)
    assert model.graph.nodes[1].inputs[1].shape == (2, 1, 1)


def test_the_table_of_operators_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "operators.md"
    assert page.read_text() == registry.table(), "run: python -m passes.channels > docs/operators.md"


def test_every_operator_with_a_rule_is_drawn_or_closes() -> None:
    """Rules that no test uses prove nothing."""
    here = Path(__file__)
    texts = "".join(p.read_text() for p in (here, here.parents[1] / "drawing.py", here.parents[1] / "zoo.py"))
    assert sorted(op for op in rules() if f'"{op}"' not in texts and op not in ALONE) == []


def test_channels_that_are_split_for_a_shuffle_or_for_split_attention_stay_many() -> None:
    b = Builder()
    x = b.node("Reshape", b.conv("input", 3, 16, at="one"), b.const([0, 2, 8, 8, 8]))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3, 4]), b.const([0, 16, 8, 8]))
    x = b.node("Reshape", b.conv(x, 16, 12, at="two"), b.const([0, 2, 6, 8, 8]))
    x = b.node("ReduceSum", x, b.const([1]), keepdims=0)
    groups = {g.name: g for g in trace(Model(b.model(b.conv(x, 6, 4, at="three")))).groups}
    assert (groups["one/Conv"].size, groups["one/Conv"].closed) == (8, None)
    assert (groups["two/Conv"].size, groups["two/Conv"].closed) == (6, None)


def test_an_empty_part_of_a_split_stands_in_no_one_s_way() -> None:
    b = Builder()
    parts = b.node("Split", b.conv("input", 3, 8, at="one"), b.const([0, 8]), outputs=2, axis=1)
    x = b.node("Concat", parts, b.nodes[-1].output[1], axis=1)
    model = Model(b.model(b.conv(x, 8, 4, at="two")))
    channels = trace(model)
    channels.remove({"one/Conv": np.array([1, 5])})
    assert run(model.finished(), images(2, 8))[0].shape == (2, 4, 8, 8)
