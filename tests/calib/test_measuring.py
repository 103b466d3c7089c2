"""The walk, the moments and the sensitivity measure what whole-model runs and plain numpy would."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import images, resnet

from calib.measure.divergence import kl_divergence, top1
from calib.measure.latency import interleaved
from calib.measure.moments import Moments, sample_positions, sampled_outputs, sampled_patches
from calib.measure.sensitivity import Change, sensitivities
from calib.measure.walk import Walk
from calib.runtime.sessions import Session, providers
from passes.core.errors import SettingsError
from passes.graph.layers import Geometry, layer_of, replace_by_chain
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise


def exposed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every intermediate tensor as an output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {o.name for o in copy.graph.output}
    copy.graph.output.extend(
        onnx.ValueInfoProto(name=name) for n in copy.graph.node for name in n.output if name not in have
    )
    return copy


@pytest.mark.parametrize("chunk", [3, 16])
def test_a_walk_finds_what_a_whole_run_finds_and_lets_go_of_it(chunk: int) -> None:
    model = normalise(resnet((2, 1)))
    x = images(16)
    session = Session(exposed(model.to_proto()))
    whole = dict(zip(session.outputs, session.run({"input": x}), strict=True))
    walk = Walk(model, [{"input": x[i : i + chunk]} for i in range(0, 16, chunk)])
    held = []
    for node in model.graph.nodes:
        name = node.outputs[0].name
        walk.advance([name])
        np.testing.assert_allclose(np.concatenate(list(walk.values(name))), whole[name], rtol=1e-4, atol=1e-5)
        held.append(len(walk.chunks[0]))
    assert max(held) <= 3  # a block's input, its shortcut and what runs between
    assert list(walk.chunks[0]) == [model.graph.outputs[0].name]


def test_a_walk_follows_nodes_that_are_replaced_ahead_of_it() -> None:
    model = normalise(resnet())
    shapes = infer_shapes(model, batch_one(model))
    changed = normalise(resnet())
    walk = Walk(changed, [{"input": images(4)}])
    convs = [n for n in changed.graph.nodes if n.op == "Conv"]
    for node in convs:
        walk.advance([node.inputs[0].name])
        layer = layer_of(node, shapes)
        replace_by_chain(changed.graph, node, [(layer.geometry, layer.weight)], layer.bias * 2)
    output = changed.graph.outputs[0].name
    walk.advance([output])
    whole = Session(changed.finished()).run({"input": images(4)})[0]
    np.testing.assert_allclose(next(walk.values(output)), whole, rtol=1e-4, atol=1e-5)
    assert np.abs(whole - Session(model.finished()).run({"input": images(4)})[0]).max() > 1e-3


def test_sensitivity_is_that_of_a_whole_model_with_the_weight_replaced() -> None:
    model = normalise(resnet((1, 2)))
    x, rng = images(24), np.random.default_rng(0)
    reference = Session(model.to_proto()).run({"input": x})
    changes, expected = [], {}
    for position, node in enumerate(model.graph.nodes):
        if node.op != "Conv":
            continue
        weight = node.inputs[1]
        values = weight.values + 0.1 * rng.normal(size=weight.shape).astype(np.float32)
        changes.append(
            Change(node.inputs[0].name, position, (weight.name,), {node.name: lambda v=values, w=weight.name: {w: v}})
        )
        copy = model.copy()
        next(n for n in copy.graph.nodes if n.name == node.name).inputs[1].values = values
        expected[node.name] = kl_divergence(reference, Session(copy.to_proto()).run({"input": x}))
    found = sensitivities(Walk(model, [{"input": x[:8]}, {"input": x[8:]}]), changes[::-1])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3)
        assert value > 1e-5


def test_moments_are_those_of_all_blocks_together_even_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 6)) + 1e4, rng.normal(size=(500, 3)) - 1e4
    moments = Moments()
    for at in (slice(0, 7), slice(7, 300), slice(300, 500)):
        moments.update(x[at], y[at])
    both = np.cov(np.concatenate([x, y], 1).T, bias=True)
    np.testing.assert_allclose(moments.second, both[:6, :6], atol=1e-9)
    np.testing.assert_allclose(moments.cross, both[6:, :6], atol=1e-9)
    np.testing.assert_allclose(moments.mean, x.mean(0))
    np.testing.assert_allclose(moments.target_mean, y.mean(0))


GEOMETRIES = [
    Geometry(3, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    Geometry(3, 4, (5, 2), (2, 3), (2, 0, 1, 1), (1, 2)),
    Geometry(3, 4, (3,), (2,), (1, 0), (1,)),
    Geometry(2, 4, (2, 2, 2), (1, 2, 1), (0,) * 6, (1, 1, 1)),
    Geometry(5, 4),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_patches_times_weights_are_the_convolution(geometry: Geometry) -> None:
    rng = np.random.default_rng(0)
    size = (9, 8, 7)[: len(geometry.kernel)]
    x = rng.normal(size=(3, geometry.inputs, *size)).astype(np.float32)
    weight = rng.normal(size=geometry.weight_shape).astype(np.float32)
    attributes = {
        "kernel_shape": geometry.kernel,
        "strides": geometry.strides,
        "pads": geometry.pads,
        "dilations": geometry.dilations,
    }
    node = (
        onnx.helper.make_node("Conv", ["x", "w"], ["y"], **{k: list(v) for k, v in attributes.items()})
        if geometry.kernel
        else onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", 1, x.shape)],
        [value("y", 1, (3, 4, *geometry.output_size(size)))],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    y = Session(proto).run({"x": x})[0]
    positions = sample_positions(geometry, size, 5, rng)
    assert len(positions) == min(5, int(np.prod(geometry.output_size(size))))
    found = sampled_patches(x, geometry, positions) @ weight.reshape(4, -1).T
    np.testing.assert_allclose(found, sampled_outputs(y, positions), rtol=1e-4, atol=1e-4)


def test_divergence_and_accuracy_by_hand() -> None:
    logits = [np.log(np.array([[0.5, 0.5], [0.9, 0.1]])), np.log(np.array([[0.2, 0.8]])) + 7]
    others = [np.array([[0.25, 0.75], [0.9, 0.1]]), np.array([[0.2, 0.8]])]  # probabilities
    by_hand = (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)) / 3
    assert kl_divergence(logits, others) == pytest.approx(by_hand)
    assert kl_divergence(logits, logits) == 0
    assert top1(others, np.array([1, 1, 1])) == pytest.approx(2 / 3)


def test_latency_tells_a_large_network_from_a_small_one() -> None:
    small, large = Session(resnet((1,), (4,))), Session(resnet((8,), (64,)))
    timings = interleaved([small, large], {"input": images(8)})
    assert 0 < timings.latency(0).value < timings.latency(1).value


def test_a_provider_that_does_not_work_is_said_in_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"unknown provider 'gpu': use auto, or one that .* has here: .*cpu"):
        providers("gpu")
    if providers("auto") == ["CPUExecutionProvider"]:
        with pytest.raises(SettingsError, match=r"'cuda' does not work on this machine.*or use cpu"):
            providers("cuda")
    else:
        assert providers("cuda")[0] == "CUDAExecutionProvider"
