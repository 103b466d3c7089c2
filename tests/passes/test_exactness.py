"""Rewrites that lose nothing leave the outputs as they were, to float32 rounding, on onnxruntime."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from graphs import Builder, images, resnet
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.sessions import Session
from passes.channels import ChannelGroup, trace
from passes.channels.tracing import register
from passes.cost import total
from passes.decompose import DECOMPOSITIONS, compose
from passes.errors import ModelError
from passes.layers import Geometry, layer_of, replace_by_chain, why_not_a_layer
from passes.model import Model
from passes.normalise import normalise
from passes.shapes import batch_one, infer_shapes

VARIANTS = [
    {"shortcut": s, "batchnorm": n, "constants": c, "head": h}
    for s in "AB"
    for n in (False, True)
    for c in (False, True)
    for h in ("gemm", "matmul")
]


def outputs(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return Session(proto).run({"input": x})[0]


def same(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1.0, float(np.abs(a).max())))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_load_and_save_is_the_identity(variant: dict) -> None:
    proto = resnet(**variant)
    proto.metadata_props.add(key="trained", value="never")
    proto.graph.node[0].doc_string = "the first"
    proto.graph.node[1].metadata_props.add(key="where", value="there")
    assert Model(proto).to_proto() == proto


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_normalisation_is_exact_and_leaves_one_form(variant: dict) -> None:
    proto = resnet(**variant)
    model = normalise(proto)
    done = model.finished()
    same(outputs(proto, images()), outputs(done, images()))
    operators = {n.op_type for n in done.graph.node}
    assert not operators & {"BatchNormalization", "Constant", "Identity", "MatMul"}
    assert "Gemm" in operators
    assert [i.name for i in done.graph.input] == ["input"]
    assert done.graph.output[0] == proto.graph.output[0]


def zero(group: ChannelGroup, classes: np.ndarray) -> None:
    """Make the channels of some classes zero: their producers' rows, and what follows them."""
    for slot, of in zip(group.slots, group.classes, strict=True):
        if slot.role == "consumes":
            continue
        tensor = slot.node.inputs[slot.index]
        values = np.array(tensor.values)
        index = [slice(None)] * values.ndim
        index[slot.axis] = np.isin(of, classes)
        values[tuple(index)] = 0
        tensor.values = values


@st.composite
def random_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of random blocks of the operators that channels pass through."""
    b = Builder(draw(st.integers(0, 10**6)))
    channels, size = 4, 8
    x = b.conv("input", 3, channels)
    kinds = ["conv", "bn", "act", "residual", "depthwise", "grouped", "pool", "scale", "concat", "pad", "transpose"]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=6)):
        if kind == "conv":
            wider = draw(st.sampled_from([4, 8]))
            x = b.conv(x, channels, wider, kernel=draw(st.sampled_from([1, 3])), bias=draw(st.booleans()))
            channels = wider
        elif kind == "bn":
            x = b.batchnorm(x, channels)
        elif kind == "act":
            x = b.add(draw(st.sampled_from(["Relu", "Tanh", "LeakyRelu", "Elu"])), [x])
        elif kind == "residual":
            y = b.conv(b.add("Relu", [b.conv(x, channels, channels)]), channels, channels)
            x = b.add(draw(st.sampled_from(["Add", "Sub"])), [x, y])
        elif kind == "depthwise":
            x = b.conv(x, channels, channels, group=channels)
        elif kind == "grouped":
            x = b.conv(x, channels, channels, group=2)
        elif kind == "pool" and size > 2:
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            x = b.add(op, [x], kernel_shape=[2, 2], strides=[2, 2])
            size //= 2
        elif kind == "scale":
            x = b.add("Mul", [x, b.weight(f"scale{b.count}", b.rng.normal(size=(channels, 1, 1)).astype(np.float32))])
        elif kind == "concat":
            x = b.add("Concat", [x, b.conv(x, channels, 4)], axis=1)
            channels += 4
        elif kind == "pad":
            x = b.add("Pad", [x, b.weight(f"pad{b.count}", np.array([0, 1, 0, 0, 0, 1, 0, 0]))])
            y = b.conv(x, channels + 2, channels + 2)
            channels += 2
            x = b.add("Add", [x, y])
        elif kind == "transpose":
            x = b.add("Transpose", [b.add("Transpose", [x], perm=[0, 2, 3, 1])], perm=[0, 3, 1, 2])
    if draw(st.booleans()):
        x, features = b.add("Flatten", [b.add("GlobalAveragePool", [x])]), channels
    else:
        x, features = b.add("Flatten", [x]), channels * size * size
    weight = b.rng.normal(size=(features, 5)).astype(np.float32) / math.sqrt(features)
    return b.model(b.add("MatMul", [x, b.weight("head", weight)]), ("N", 3, 8, 8))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_graphs(), st.data())
def test_removing_channels_of_zeros_changes_nothing(proto: onnx.ModelProto, data: st.DataObject) -> None:
    model = Model(proto)
    channels = trace(model)
    groups = [g for g in channels.groups if g.closed is None and g.size > 1]
    if not groups:
        assert any(g.closed for g in channels.groups)
        return
    group = data.draw(st.sampled_from(groups))
    wanted = data.draw(st.sets(st.integers(0, group.size - 1), min_size=1, max_size=group.size - 1))
    classes = np.array(sorted(wanted))
    zero(group, classes)
    before = outputs(model.to_proto(), images(4))
    removed = {slot.node.name: np.isin(of, classes).all() for slot, of in zip(group.slots, group.classes, strict=True)}
    if any(removed.values()):  # some layer on the way would lose all of its own
        with pytest.raises(ModelError, match="without channels"):
            channels.remove({group.name: classes})
        return
    channels.remove({group.name: classes})
    model.forget_shapes()
    after = model.finished()
    same(before, outputs(after, images(4)))
    assert sum(t.ByteSize() for t in after.graph.initializer) < sum(t.ByteSize() for t in proto.graph.initializer)


def test_a_residual_stage_is_one_group_and_padded_shortcuts_tie_the_stages() -> None:
    model = normalise(resnet((2, 2), (8, 16), shortcut="A"))
    stage, *inner = trace(model).groups
    assert stage.closed is None
    assert stage.size == 16
    assert len(stage.members("produces")) == 1 + 2 + 2
    first, last = stage.members("produces")[0][1], stage.members("produces")[-1][1]
    np.testing.assert_array_equal(last[4:12], first)
    assert [g.size for g in inner if g.closed is None] == [8, 8, 16, 16]


def test_stages_with_convs_on_the_shortcut_are_groups_of_their_own() -> None:
    groups = trace(normalise(resnet((1, 1), (8, 16), shortcut="B"))).groups
    assert sorted(g.size for g in groups if g.closed is None) == [8, 8, 16, 16]


def test_an_unknown_operator_closes_its_group_and_is_named() -> None:
    b = Builder()
    x = b.add("LpNormalization", [b.conv("input", 3, 4)], axis=1)
    proto = b.model(b.conv(x, 4, 4), ("N", 3, 8, 8))
    closed = [g.closed for g in trace(Model(proto)).groups]
    assert closed[0] == "operator LpNormalization (node 'LpNormalization_2') has no rule"
    assert "output" in str(closed[1])


def test_a_second_rule_for_an_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="Conv has a channel rule already"):
        register("Conv")(lambda node, tracer: None)


def test_removing_every_channel_of_a_layer_is_refused() -> None:
    channels = trace(normalise(resnet()))
    group = next(g for g in channels.groups if g.closed is None)
    with pytest.raises(ModelError, match="without channels"):
        channels.remove({group.name: np.arange(group.size)})


GEOMETRIES = {
    "3x3": Geometry(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "stride 2": Geometry(4, 6, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "5x3, uneven pads": Geometry(4, 6, (5, 3), (1, 2), (2, 0, 1, 2), (1, 1)),
    "dilated": Geometry(4, 6, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "1x1 stride 2": Geometry(8, 6, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "1-D": Geometry(4, 6, (3,), (1,), (1, 1), (1,)),
    "3-D": Geometry(2, 4, (3, 3, 3), (1, 1, 1), (1,) * 6, (1, 1, 1)),
    "Gemm": Geometry(12, 6),
}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("shape", GEOMETRIES)
def test_full_rank_is_exact(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    if method.why_not(geometry):
        assert name != "svd"  # which applies to every ungrouped layer
        assert min((*geometry.kernel, 1)) == 1 or len(geometry.kernel) != 2
        return
    rng = np.random.default_rng(0)
    weight = rng.normal(size=geometry.weight_shape)
    root = rng.normal(size=(geometry.features,) * 2)
    moment = root @ root.T / geometry.features + 0.1 * np.eye(geometry.features)
    rank = method.max_rank(geometry)
    links, factors = method.links(geometry, rank), method.factors(geometry, weight, moment, rank)
    assert [f.shape for f in factors] == [link.weight_shape for link in links]
    np.testing.assert_allclose(compose(links, factors), weight, atol=1e-8)

    d = len(geometry.kernel)
    x = rng.normal(size=(2, geometry.inputs, *(7,) * d)).astype(np.float32)
    b = Builder()
    names = ["input", b.weight("w", weight.astype(np.float32)), b.weight("b", np.ones(geometry.outputs, np.float32))]
    if d:
        y = b.add(
            "Conv",
            names,
            kernel_shape=list(geometry.kernel),
            strides=list(geometry.strides),
            pads=list(geometry.pads),
            dilations=list(geometry.dilations),
        )
    else:
        y = b.add("Gemm", names, transB=1)
    proto = b.model(y, x.shape)
    model = Model(proto)
    replace_by_chain(
        model.graph, model.graph.nodes[0], list(zip(links, factors, strict=True)), np.ones(geometry.outputs)
    )
    chain = model.finished()
    assert len(chain.graph.node) == len(links)
    same(outputs(proto, x), outputs(chain, x))


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_more_rank_is_less_error_and_costs_what_the_graph_says(name: str) -> None:
    geometry, method = Geometry(8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), DECOMPOSITIONS[name]
    rng = np.random.default_rng(0)
    weight, moment = rng.normal(size=geometry.weight_shape), np.diag(rng.uniform(0.1, 2, geometry.features))
    losses, before = [], math.inf
    for ratio in (0.25, 0.5, 0.9):
        rank = method.rank_for(geometry, (8, 8), ratio, 1)
        assert rank is not None
        links, factors = method.links(geometry, rank), method.factors(geometry, weight, moment, rank)
        cost = sum(link.macs((8, 8)) for link in links)
        assert cost <= ratio * geometry.macs((8, 8)) < sum(k.macs((8, 8)) for k in method.links(geometry, rank + 1))
        difference = (compose(links, factors) - weight).reshape(8, -1)
        losses.append(float(np.trace(difference @ moment @ difference.T)))
        b = Builder()
        x = b.add("Conv", ["input", b.weight("w", weight.astype(np.float32))], pads=[1] * 4)
        model = Model(b.model(x, (1, 8, 8, 8)))
        replace_by_chain(model.graph, model.graph.nodes[0], list(zip(links, factors, strict=True)), np.zeros(8))
        assert total(model).macs == cost
    for loss in losses:
        assert loss < before
        before = loss


def test_the_svd_is_the_best_of_its_rank_in_the_norm_of_the_responses() -> None:
    geometry = Geometry(10, 8)
    rng = np.random.default_rng(1)
    weight, root = rng.normal(size=(8, 10)), rng.normal(size=(10, 10))
    links = DECOMPOSITIONS["svd"].links(geometry, 3)
    found = compose(links, DECOMPOSITIONS["svd"].factors(geometry, weight, root @ root.T, 3))
    singular = np.linalg.svd(weight @ root, compute_uv=False)
    loss = np.sum(((weight - found) @ root) ** 2)
    assert loss == pytest.approx(np.sum(singular[3:] ** 2), rel=1e-9)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_pads_become_the_same_explicit_ones(auto_pad: str) -> None:
    b = Builder()
    weight = b.rng.normal(size=(4, 3, 3, 4)).astype(np.float32)
    y = b.add("Conv", ["input", b.weight("w", weight)], auto_pad=auto_pad, strides=[2, 3])
    proto = b.model(y, (1, 3, 8, 9))
    model = Model(proto)
    node, shapes = model.graph.nodes[0], infer_shapes(model, batch_one(model))
    assert why_not_a_layer(node, shapes) is None
    layer = layer_of(node, shapes)
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 9)).astype(np.float32)
    replace_by_chain(model.graph, node, [(layer.geometry, layer.weight)], layer.bias)
    same(outputs(proto, x), outputs(model.finished(), x))
