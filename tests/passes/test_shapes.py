"""Shapes of every tensor at any input size, without the weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto
from zoo import Builder, resnet

import passes.graph.shapes as shapes_module
from passes.core.errors import ModelError
from passes.graph.model import Model
from passes.graph.shapes import Shapes, batch_one, infer_shapes


def test_an_unknown_batch_becomes_one() -> None:
    b = Builder()
    y = b.node("Add", b.node("Flatten", "a"), "b")
    assert batch_one(Model(b.model(y, {"a": ("N", 3, 2, 2), "b": (4, 12)}))) == {"a": (1, 3, 2, 2), "b": (4, 12)}


@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), ("N", "C", 8, 8)])
def test_any_other_unknown_dimension_must_be_given(shape: tuple) -> None:
    b = Builder()
    model = Model(b.model(b.node("Relu", "input"), shape))
    with pytest.raises(ModelError, match=r"input 'input' has unknown dimensions .*: state the input size") as caught:
        batch_one(model)
    assert "\n" not in str(caught.value)


def test_shapes_are_those_that_whole_inference_finds() -> None:
    proto = resnet((1, 1), (4, 8), option_a="torchscript", weights="constants")
    found = infer_shapes(Model(proto), {"input": (2, 3, 16, 16)})
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    expected = {v.name: tuple(d.dim_value or None for d in v.type.tensor_type.shape.dim) for v in inferred.value_info}
    assert len(expected) > 40
    assert {k: found[k] for k in expected} == expected
    assert found["logits"] == (2, 10)


def test_unknown_dimensions_stay_unknown_and_unknown_ranks_are_left_out() -> None:
    b = Builder()
    x = b.conv("input", 3, 4, at="/a")
    y = b.node("Swirl", x, domain="com.example")
    found = infer_shapes(Model(b.model({b.node("Relu", y): [1, 4]}, ("N", 3, "H", 8))))
    assert found["/a/Conv_output_0"] == (None, 4, None, 8)
    assert y not in found
    assert found["/a.weight"] == (4, 3, 3, 3)


def test_shapes_follow_a_rewrite() -> None:
    model = Model(resnet((1,), (4,)))
    first = model.graph.nodes[0]
    first.attrs["strides"] = [2, 2]
    assert infer_shapes(model)[first.outputs[0].name] == (None, 4, 8, 8)


def test_the_model_is_not_changed() -> None:
    model = Model(resnet((1, 1), (4, 8)))
    before = model.digest()
    infer_shapes(model, {"input": (7, 3, 32, 32)})
    assert model.digest() == before


def test_large_weights_are_not_copied() -> None:
    model = Model(resnet((1, 1), (4, 8)))
    for constant in model.constants():
        if np.prod(constant.shape) > 64:
            constant.values = np.broadcast_to(np.float32(0), constant.shape)
    huge = gs.Constant("huge", np.broadcast_to(np.float32(0), (10**5, 10**5)))  # 40 GB, were it written out
    model.graph.nodes.append(
        gs.Node("Mul", "/huge", {}, [huge, gs.Constant("one", np.float32([1]))], [gs.Variable("y")])
    )
    assert infer_shapes(model)["y"] == (10**5, 10**5)


def test_a_model_that_inference_refuses_is_a_model_error() -> None:
    model = Model(resnet((1,), (4,)))
    model.graph.nodes[0].domain = "com.example"  # which no opset is imported for
    with pytest.raises(ModelError, match="shape inference fails on the model: ") as caught:
        infer_shapes(model)
    assert "\n" not in str(caught.value)


def test_a_model_infers_its_shapes_once_for_each_input_size(monkeypatch: pytest.MonkeyPatch) -> None:
    inferred: list[object] = []

    def counted(model: Model, inputs: dict[str, tuple[int, ...]]) -> Shapes:
        inferred.append(inputs)
        return infer_shapes(model, inputs)

    monkeypatch.setattr(shapes_module, "infer_shapes", counted)
    model = Model(resnet((1, 1), (4, 8)))
    model.sizes = {"input": (2, 3, 16, 16)}
    found = model.shapes
    assert found["logits"] == (2, 10) and model.shapes_at()["logits"] == (1, 10)
    assert model.shapes == found == model.copy().shapes
    assert len(inferred) == 2


def a_constant(model: Model) -> None:
    model.graph.nodes[0].inputs[1].values = np.array([2, 6, -1])


def an_attribute(model: Model) -> None:
    model.graph.nodes[1].attrs["perm"] = [2, 0, 1]


def a_node(model: Model) -> None:
    model.graph.nodes[1].op = "Relu"
    model.graph.nodes[1].attrs.clear()


def a_run(model: Model) -> None:
    model.observed["far"] = onnx.helper.make_tensor_value_info("far", TensorProto.FLOAT, [7])


@pytest.mark.parametrize("change", [a_constant, an_attribute, a_node, a_run])
def test_shapes_are_inferred_again_after_a_change_to(change) -> None:
    b = Builder()
    turned = b.node("Transpose", b.node("Reshape", "input", b.const([2, 4, -1])), perm=[1, 0, 2])
    model = Model(b.model(turned, (2, 24)))
    unknown = gs.Node("Unknown", inputs=model.graph.nodes[1].outputs, outputs=[gs.Variable("far")], domain="other")
    model.graph.nodes.append(unknown)
    model.header.opset_import.append(onnx.helper.make_opsetid("other", 1))
    before = model.shapes
    change(model)
    assert model.shapes == infer_shapes(model) != before
