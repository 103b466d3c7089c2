"""The replacement of one layer by a chain, as a pass."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError
from zoo import Builder, assert_same, images, resnet, run

from passes.decompose import DECOMPOSITIONS
from passes.decompose.decompose_layer import DecomposeLayer
from passes.graph.layers import layer_of
from passes.graph.model import Model

CONV = "/layer1.0.conv1/Conv"


def gemm_name() -> str:
    return next(n.name for n in resnet((1,), (4,)).graph.node if n.op_type == "Gemm")


# "input" is for ConvTransposes, which tests/hmc_onnx/test_transposed.py has.
OF_CONVS = sorted(set(DECOMPOSITIONS) - {"input"})


@pytest.mark.parametrize(("kind", "method"), [*(("Conv", m) for m in OF_CONVS), ("Gemm", "svd")])
def test_at_the_full_rank_the_network_stays_what_it_was(kind: str, method: str) -> None:
    proto = resnet((1,), (4,))
    name = CONV if kind == "Conv" else gemm_name()
    node = next(n for n in Model(proto).graph.nodes if n.name == name)
    rank = DECOMPOSITIONS[method].max_rank(layer_of(node, Model(proto).shapes).geometry)
    result = DecomposeLayer(name, method, rank)(ir.from_proto(proto))
    assert result.modified
    after = ir.to_proto(result.model)
    assert {n.name for n in after.graph.node if n.name.startswith(f"{name}/")} >= {f"{name}/0", f"{name}/1"}
    assert_same(run(after, images()), run(proto, images()), 1e-4)


def test_given_factors_and_bias_are_the_chains() -> None:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2, 4, 3, 3)), rng.normal(size=(4, 2, 1, 1))
    bias = rng.normal(size=4)
    model = Model(resnet((1,), (4,)))
    assert DecomposeLayer(CONV, "svd", 2, factors, bias).rewrite(model) == 1
    first, last = (next(n for n in model.graph.nodes if n.name == f"{CONV}/{i}") for i in (0, 1))
    np.testing.assert_array_equal(first.inputs[1].values, factors[0].astype(np.float32))
    np.testing.assert_array_equal(last.inputs[1].values, factors[1].astype(np.float32))
    np.testing.assert_array_equal(last.inputs[2].values, bias.astype(np.float32))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (DecomposeLayer("nothing", "svd", 1), "the model has no node 'nothing'"),
        (DecomposeLayer("/layer1.0/Add", "svd", 1), "the model has no layer '/layer1.0/Add'"),
        (DecomposeLayer(CONV, "magic", 1), "unknown method 'magic', use svd, spatial, tucker, cp"),
        (DecomposeLayer(CONV, "svd", 5), "svd has no rank 5: use a whole number from 1 to 4"),
        (DecomposeLayer(CONV, "svd", 1.5), "svd has no rank 1.5: use a whole number from 1 to 4"),  # type: ignore[arg-type]
        (DecomposeLayer(CONV, "svd", 1, (np.ones(1), np.ones(1))), "the factors have shapes"),
        (DecomposeLayer(CONV, "svd", 1, None, np.ones(3)), r"the bias has shape \(3,\), not \(4,\)"),
        (DecomposeLayer(CONV, "svd", 1, None, np.full(4, np.nan)), "the bias holds NaN or infinity"),
        (DecomposeLayer(CONV, "svd", True), "svd has no rank True"),
        (DecomposeLayer(gemm_name(), "spatial", 1), "spatial does not apply: its kernel"),
    ],
)
def test_what_cannot_be_decomposed_is_refused(step: DecomposeLayer, said: str) -> None:
    with pytest.raises(PreconditionError, match=said):
        step(ir.from_proto(resnet((1,), (4,))))


def test_a_layer_with_computed_weights_is_refused() -> None:
    b = Builder()
    proto = b.model(b.node("Conv", "input", b.node("Relu", "w"), at="x"), {"input": (1, 3, 8, 8), "w": (3, 3, 1, 1)})
    with pytest.raises(PreconditionError, match="'x/Conv' cannot be changed: its weights are computed"):
        DecomposeLayer("x/Conv", "svd", 1)(ir.from_proto(proto))
