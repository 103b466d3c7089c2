"""The walk against whole-model runs with every tensor exposed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from zoo import images, resnet, run

from calib.measure.walk import Walk
from passes.graph.layers import layer_of, replace_by_chain, write_layer
from passes.graph.model import Model
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "option A": lambda: resnet((2, 1), (4, 8), size=8),
    "option B, bottlenecks": lambda: resnet((1, 1), (4, 8), shortcut="B", block="bottleneck", size=8),
    "MatMul head": lambda: resnet((1, 1), (4, 8), head="reducemean_matmul_add", option_a="torchscript", size=8),
}


def everything(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of a model, by onnxruntime on the whole of it."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    names = [name for node in proto.graph.node for name in node.output]
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, run(exposed, x), strict=True)) | {"input": x}


def chunked(x: np.ndarray, *cuts: int) -> list[dict[str, np.ndarray]]:
    return [{"input": part} for part in np.split(x, cuts)]


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("cuts", [(), (1, 4)], ids=["one chunk", "three chunks"])
@pytest.mark.parametrize("build", MODELS.values(), ids=list(MODELS))
def test_each_tensor_is_that_of_a_whole_run_and_held_while_it_is_read(build, cuts: tuple[int, ...]) -> None:
    model = normalise(build())
    x = images(6, 8)
    whole = everything(model.to_proto(), x)
    walk = Walk(model, chunked(x, *cuts))
    for at, node in enumerate(model.graph.nodes):
        wanted = node.outputs[0].name
        walk.advance([wanted])
        read_later = {t.name for n in model.graph.nodes[at + 1 :] for t in n.inputs}
        live = {name for name in ("input", *(n.outputs[0].name for n in model.graph.nodes[:at])) if name in read_later}
        for chunk in walk.chunks:
            assert chunk.keys() == live | {wanted}
        for name in live | {wanted}:
            assert walk.holds(name)
            close(np.concatenate(list(walk.values(name))), whole[name])
        assert not walk.holds("no such tensor")


def test_a_leap_over_many_layers_lands_where_steps_do() -> None:
    model = normalise(MODELS["option B, bottlenecks"]())
    x = images(5, 8)
    whole = everything(model.to_proto(), x)
    convs = [n for n in model.graph.nodes if n.op == "Conv"]
    names = [convs[2].inputs[0].name, convs[5].inputs[0].name]
    walk = Walk(model, chunked(x, 2))
    walk.advance(names)
    for name in names:
        close(np.concatenate(list(walk.values(name))), whole[name])
    walk.advance(names[1:])
    assert walk.holds(names[1])


def with_weights_times(model: Model, factors: dict[str, float]) -> Model:
    """A copy of a model in which the weights of some nodes are multiplied."""
    other = model.copy()
    for node in other.graph.nodes:
        if node.name in factors:
            node.inputs[1].values = (factors[node.name] * node.inputs[1].values).astype(np.float32)
    return other


@pytest.mark.parametrize("memory", [None, 0], ids=["in memory", "on disk"])
def test_a_fork_runs_what_has_not_run_and_leaves_the_walk_where_it_is(memory: int | None) -> None:
    model = normalise(MODELS["option A"]())
    x = images(4, 8)
    first, second, third = [n for n in model.graph.nodes if n.op == "Conv"][:3]
    walk = Walk(model, chunked(x, 3), memory=memory)
    walk.advance([second.inputs[0].name])
    held = [set(chunk) for chunk in walk.chunks]
    changed = everything(with_weights_times(model, {third.name: 2}).to_proto(), x)["logits"]
    for _ in range(2):
        fork = walk.fork(with_weights_times(model, {first.name: 0, third.name: 2}))  # the first has run already
        fork.advance(["logits"])
        close(np.concatenate(list(fork.values("logits"))), changed)
        assert [set(chunk) for chunk in walk.chunks] == held
    walk.advance(["logits"])
    close(np.concatenate(list(walk.values("logits"))), everything(model.to_proto(), x)["logits"])


def test_nodes_replaced_ahead_of_the_walk_are_the_ones_that_run() -> None:
    model = normalise(MODELS["option A"]())
    shapes = infer_shapes(model, batch_one(model))
    x = images(4, 8)
    before = everything(model.to_proto(), x)["logits"]
    walk = Walk(model, chunked(x, 3))
    for i, node in enumerate([n for n in model.graph.nodes if n.op == "Conv"]):
        walk.advance([node.inputs[0].name])
        layer = layer_of(node, shapes)
        scaled = layer.weight * (1 + 0.1 * i)
        if i % 2:
            write_layer(model.graph, node, scaled, layer.bias + 0.1)
        else:
            replace_by_chain(model.graph, node, [(layer.geometry, scaled)], layer.bias + 0.1)
    walk.advance(["logits"])
    after = everything(model.finished(), x)["logits"]
    close(np.concatenate(list(walk.values("logits"))), after)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("cuts", [(), (1, 4)], ids=["one chunk", "three chunks"])
@pytest.mark.parametrize("place", [1, 4, -1])
def test_a_tail_with_other_weights_is_the_whole_model_with_them(place: int, cuts: tuple[int, ...]) -> None:
    model = normalise(MODELS["option A"]())
    x = images(6, 8)
    layers = [n for n in model.graph.nodes if n.op in ("Conv", "Gemm")]
    names = [t.name for t in layers[place].inputs[1:]]
    walk = Walk(model, chunked(x, *cuts))
    walk.advance([layers[place].inputs[0].name])
    tail = walk.tail(names)
    rng = np.random.default_rng(0)
    for _ in range(2):  # one session serves every value
        values = {t.name: rng.normal(size=t.shape).astype(np.float32) for t in layers[place].inputs[1:]}
        changed = model.copy()
        node = next(n for n in changed.graph.nodes if n.name == layers[place].name)
        for t in node.inputs[1:]:
            t.values = values[t.name]
        expected = everything(changed.to_proto(), x)["logits"]
        close(np.concatenate(*tail.outputs(values)), expected)
        assert [len(y) for y in tail.outputs(values)[0]] == [len(c["input"]) for c in chunked(x, *cuts)]
    close(np.concatenate(*tail.outputs({})), everything(model.to_proto(), x)["logits"])


def test_a_model_that_is_walked_keeps_its_own_weights() -> None:
    model: Model = normalise(MODELS["option A"]())
    digest = model.digest()
    walk = Walk(model, chunked(images(2, 8)))
    walk.advance(["logits"])
    assert model.digest() == digest


def test_behind_the_output_no_weight_matters() -> None:
    model = normalise(MODELS["option A"]())
    x = images(3, 8)
    walk = Walk(model, chunked(x, 1))
    walk.advance(["logits"])
    name = next(n for n in model.graph.nodes if n.op == "Conv").inputs[1].name
    outputs = walk.tail([name]).outputs({name: np.zeros(1, np.float32)})
    close(np.concatenate(*outputs), everything(model.to_proto(), x)["logits"])
