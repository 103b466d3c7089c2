"""Rewrites that lose nothing leave the outputs as they were, to float32 rounding, on onnxruntime."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from graphs import Builder, images, resnet

from calib.runtime.sessions import Session
from passes.decompose import DECOMPOSITIONS, compose
from passes.graph.cost import total
from passes.graph.layers import Geometry, layer_of, replace_by_chain, why_not_a_layer
from passes.graph.model import Model
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise

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


@pytest.mark.parametrize("name", sorted({*DECOMPOSITIONS} - {"input"}))  # which is for a ConvTranspose
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
