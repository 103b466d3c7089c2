"""Parts of a graph compute what the whole does, from the tensors they are given."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from zoo import assert_same, images, parsed, resnet, run

from passes.graph.model import Model
from passes.graph.subgraph import nodes_between, submodel
from passes.normal_form.normalise import normalise

FLOAT = np.dtype(np.float32)


def everything(proto: onnx.ModelProto, feeds: np.ndarray | dict) -> dict[str, np.ndarray]:
    """The value of every tensor that a node of the main graph makes."""
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    made = [name for node in whole.graph.node for name in node.output]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return dict(zip(made, run(whole, feeds), strict=True))


def part(model: Model, known: list[str], wanted: list[str], replaceable: tuple[str, ...] = ()) -> onnx.ModelProto:
    nodes = nodes_between(model.graph, known, wanted)
    proto = submodel(model, nodes, dict.fromkeys(known, FLOAT), wanted, replaceable)
    return proto


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_rest_of_a_network_computes_what_the_whole_does_from_every_cut(shortcut: str) -> None:
    model = normalise(resnet((1, 1), (4, 8), size=8, shortcut=shortcut))
    values = everything(model.finished(), images(3, 8))
    relus = [n.outputs[0].name for n in model.graph.nodes if n.op == "Relu"]
    for name in [relus[0], relus[2]]:  # what the blocks hand on: everything behind depends on these alone
        proto = part(model, [name], ["logits"])
        assert [i.name for i in proto.graph.input] == [name]
        assert len(proto.graph.node) < len(model.graph.nodes)
        assert_same(run(proto, {name: values[name]}), [values["logits"]])


def test_several_tensors_can_be_given_and_wanted_in_any_order() -> None:
    model = normalise(resnet((2,), (4,), size=8))
    values = everything(model.finished(), images(2, 8))
    stem, first = "/Relu_output_0", "/layer1.0.conv2/Conv_output_0"
    wanted = ["logits", "/layer1.0/Add_output_0", "/layer1.1.conv1/Conv_output_0"]
    proto = part(model, [first, stem], wanted)
    assert [o.name for o in proto.graph.output] == wanted
    assert not {"/conv1/Conv", "/layer1.0.conv1/Conv", "/layer1.0.conv2/Conv"} & {n.name for n in proto.graph.node}
    assert_same(run(proto, {k: values[k] for k in (stem, first)}), [values[k] for k in wanted])


def test_only_what_is_needed_is_taken_in_graph_order() -> None:
    graph = normalise(resnet((1, 1), (4, 8), size=8)).graph
    nodes = nodes_between(graph, ["/Relu_output_0"], ["/layer1.0.conv2/Conv_output_0"])
    assert [n.name for n in nodes] == ["/layer1.0.conv1/Conv", "/layer1.0/Relu", "/layer1.0.conv2/Conv"]
    assert nodes_between(graph, ["logits"], ["logits"]) == []
    assert len(nodes_between(graph, ["input"], ["logits"])) == len(graph.nodes)


def test_inputs_are_open_to_other_shapes() -> None:
    model = normalise(resnet((1,), (4,), size=8))
    proto = part(model, ["/Relu_output_0"], ["/layer1.0/Add_output_0"])
    for shape in ((1, 4, 8, 8), (5, 4, 6, 9)):
        assert run(proto, {"/Relu_output_0": np.ones(shape, np.float32)})[0].shape == shape


def test_replaceable_initializers_can_be_fed_and_need_not_be() -> None:
    model = normalise(resnet((1,), (4,), size=8))
    node = next(n for n in model.graph.nodes if n.name == "/layer1.0.conv1/Conv")
    weight, bias = node.inputs[1], node.inputs[2]
    proto = part(model, ["/Relu_output_0"], ["logits"], (weight.name, bias.name))
    values = everything(model.finished(), images(2, 8))
    feeds = {"/Relu_output_0": values["/Relu_output_0"]}
    assert_same(run(proto, feeds), [values["logits"]])
    others = {weight.name: weight.values * -2, bias.name: bias.values + 1}
    weight.values, bias.values = others[weight.name], others[bias.name]
    changed = run(model.finished(), images(2, 8))
    assert np.abs(changed[0] - values["logits"]).max() > 0.01
    assert_same(run(proto, feeds | others), changed)


def test_initializers_that_are_not_named_cannot_be_fed() -> None:
    model = normalise(resnet((1,), (4,), size=8))
    proto = part(model, ["/Relu_output_0"], ["logits"], ("linear.weight",))
    assert [i.name for i in proto.graph.input] == ["/Relu_output_0", "linear.weight"]


def test_files_from_before_ir_version_4_can_be_fed_too() -> None:
    proto = resnet((1,), (4,), size=8, opset=11)
    proto.ir_version = 3
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    model = normalise(proto)
    values = everything(model.finished(), images(2, 8))
    cut = part(model, ["/Relu_output_0"], ["logits"], ("linear.bias",))
    feeds = {"/Relu_output_0": values["/Relu_output_0"], "linear.bias": np.zeros(10, np.float32)}
    bias = next(t for t in proto.graph.initializer if t.name == "linear.bias")
    assert_same(run(cut, feeds), [values["logits"] - onnx.numpy_helper.to_array(bias)])


def test_what_the_inside_of_an_if_reads_is_computed_too() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] input, bool turn) => (float[N,3] output) {
            x = Tanh(input)
            y = Relu(x)
            z = If(turn) <
                then_branch = yes () => (float[N,3] a) { a = MatMul(x, weight) },
                else_branch = no () => (float[N,3] b) { t = Neg(y)  b = MatMul(t, weight) }
            >
            output = Exp(z)
        }""",
        weight=weight,
    )
    model = Model(proto)
    assert [n.op for n in nodes_between(model.graph, ["input", "turn"], ["z"])] == ["Tanh", "Relu", "If"]
    assert [n.op for n in nodes_between(model.graph, ["x", "turn"], ["z"])] == ["Relu", "If"]
    nodes = nodes_between(model.graph, ["x", "turn"], ["output"])
    cut = submodel(model, nodes, {"x": FLOAT, "turn": np.dtype(bool)}, ["output"])
    x = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    for turn in (True, False):
        feeds = {"x": np.tanh(x), "turn": np.array(turn)}
        assert_same(run(cut, feeds), run(proto, {"input": x, "turn": np.array(turn)}))


def test_functions_of_the_model_come_with_its_nodes() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,4] input) => (float[N,4] output) { x = Tanh(input)  output = local.twice(x) }
        <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    assert_same(run(part(Model(proto), ["x"], ["output"]), {"x": np.tanh(x)}), run(proto, x))


def test_the_model_is_not_changed() -> None:
    model = normalise(resnet((1, 1), (4, 8), size=8))
    before = model.digest()
    part(model, ["/Relu_output_0"], ["logits"], ("linear.weight",))
    assert model.digest() == before
