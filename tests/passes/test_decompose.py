"""Decompositions, all that are registered: exact at full rank, better with more, priced right, best where they say."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
from tensorly.decomposition import partial_tucker
from zoo import Builder, assert_same, run

from passes.core.declined import Declined, Why
from passes.decompose import DECOMPOSITIONS, chain_macs, chain_parameters, compose, error
from passes.decompose.base import mode_moment
from passes.decompose.tensorly_apart import svd_by_gram
from passes.decompose.tucker import ITERATIONS
from passes.graph.cost import costs
from passes.graph.layers import Geometry, layer_of, replace_by_chain
from passes.graph.model import Model
from passes.graph.shapes import infer_shapes

GEOMETRIES = {
    "3x3": Geometry(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3x3, fewer outputs": Geometry(6, 3, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3x3, stride 2": Geometry(4, 5, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "3x3, dilated, no pads": Geometry(3, 4, (3, 3), (1, 1), (0, 0, 0, 0), (2, 2)),
    "5x3, uneven": Geometry(3, 4, (5, 3), (1, 2), (3, 0, 1, 2), (1, 2)),
    "1x3": Geometry(4, 6, (1, 3), (1, 1), (0, 1, 0, 1), (1, 1)),
    "1x1": Geometry(8, 6, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "1x1, stride 2": Geometry(6, 8, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "1-D": Geometry(4, 6, (3,), (2,), (1, 0), (1,)),
    "3-D": Geometry(2, 4, (3, 2, 3), (1, 2, 1), (1, 0, 1, 1, 1, 0), (1, 1, 1)),
    "3x3, many inputs": Geometry(12, 2, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3x3, many outputs": Geometry(2, 24, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "5x5, one input": Geometry(1, 3, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    "Gemm": Geometry(12, 5),
    "transposed 2x2": Geometry(6, 4, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), transposed=True),
    "transposed 4x4": Geometry(4, 6, (4, 4), (2, 2), (1, 1, 1, 1), (1, 1), transposed=True),
    "transposed, uneven": Geometry(5, 3, (3, 2), (2, 3), (0, 1, 1, 0), (1, 2), transposed=True, output_padding=(1, 0)),
    "transposed 1-D": Geometry(4, 6, (3,), (2,), (1, 0), (1,), transposed=True),
}
GROUPED = Geometry(4, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=2)

# The geometries that each decomposition is for: a mistake in why_not would silence the tests below.
SPATIAL = [
    "3x3",
    "3x3, fewer outputs",
    "3x3, many inputs",
    "3x3, many outputs",
    "3x3, stride 2",
    "3x3, dilated, no pads",
    "5x3, uneven",
    "5x5, one input",
]
TRANSPOSED = [shape for shape, geometry in GEOMETRIES.items() if geometry.transposed]
APPLIES = {
    "svd": list(GEOMETRIES),
    "spatial": SPATIAL,
    "tucker": [*SPATIAL, "1x3", "1-D", "3-D", *TRANSPOSED],
    "cp": [*SPATIAL, "1x3", "1-D", "3-D"],
    "input": TRANSPOSED,
}
CASES = [(name, shape) for name, shapes in APPLIES.items() for shape in shapes]
each_case = pytest.mark.parametrize(("name", "shape"), CASES, ids=["-".join(c) for c in CASES])
each_method = pytest.mark.parametrize("name", APPLIES)


def size_of(geometry: Geometry) -> tuple[int, ...]:
    return (9, 8, 7)[: len(geometry.kernel)]


def drawn(geometry: Geometry, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and a second moment of patches with correlated features of different sizes."""
    rng = np.random.default_rng(seed)
    n = geometry.features
    mix = 0.3 * rng.normal(size=(n, n)) / math.sqrt(n) + np.diag(rng.uniform(0.5, 1.5, n))
    return rng.normal(size=geometry.weight_shape), mix @ mix.T


def model_of(geometry: Geometry, weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    b = Builder()
    read = ["input", b.const(weight.astype(np.float32), "w"), b.const(bias.astype(np.float32), "b")]
    if not geometry.kernel:
        return b.model(b.node("Gemm", *read, at="/fc", transB=1), ("N", geometry.inputs))
    attributes = {k: list(getattr(geometry, k)) for k in ("strides", "pads", "dilations")}
    if geometry.transposed:
        read[1] = b.const(weight.swapaxes(0, 1).astype(np.float32), "w")
        attributes["output_padding"] = geometry.output_padding or [0] * len(geometry.kernel)
    y = b.node(
        "ConvTranspose" if geometry.transposed else "Conv", *read, at="/c", kernel_shape=geometry.kernel, **attributes
    )
    return b.model(y, ("N", geometry.inputs, *size_of(geometry)))


def decomposed(proto: onnx.ModelProto, links: tuple, factors: tuple) -> Model:
    """The model with its one layer replaced by the chain."""
    model = Model(proto)
    (node,) = model.graph.nodes
    bias = layer_of(node, infer_shapes(model)).bias
    replace_by_chain(model.graph, node, list(zip(links, factors, strict=True)), bias)
    return model


def test_every_decomposition_is_tested() -> None:
    assert DECOMPOSITIONS.keys() == APPLIES.keys()
    assert all(method.name == name for name, method in DECOMPOSITIONS.items())


@pytest.mark.parametrize("shape", GEOMETRIES)
@each_method
def test_a_decomposition_applies_to_the_layers_it_is_for_and_says_why_to_no_other(name: str, shape: str) -> None:
    reason = DECOMPOSITIONS[name].why_not(GEOMETRIES[shape])
    assert (reason is None) == (shape in APPLIES[name])
    assert reason is None or re.match("its kernel |it is (not )?a ConvTranspose", str(reason))


@each_method
def test_grouped_convs_are_declined(name: str) -> None:
    grouped = replace(GROUPED, transposed=name == "input")
    assert re.match("it is a grouped Conv(Transpose)?, which has no dense ", str(DECOMPOSITIONS[name].why_not(grouped)))


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("spatial", "1x3", "its kernel (1, 3) does not extend over two spatial axes"),
        ("spatial", "3-D", "its kernel (3, 2, 3) does not extend over two spatial axes"),
        ("spatial", "Gemm", "its kernel () does not extend over two spatial axes"),
        ("tucker", "1x1", "its kernel is 1×1, for which the SVD is the Tucker decomposition"),
        ("cp", "1x1", "its kernel is 1×1, for which the SVD is the CP decomposition"),
    ],
)
def test_the_sentence_names_the_kernel(name: str, shape: str, sentence: str) -> None:
    assert DECOMPOSITIONS[name].why_not(GEOMETRIES[shape], "here") == Declined("here", Why.KERNEL, sentence)


@each_case
def test_full_rank_is_exact_in_numbers_and_on_onnxruntime(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    rank = method.max_rank(geometry)
    links, factors = method.links(geometry, rank), method.factors(geometry, weight, moment, rank)
    np.testing.assert_allclose(compose(links, factors), weight, atol=1e-9 * np.abs(weight).max())
    scale = 1 / math.sqrt(geometry.features)
    proto = model_of(geometry, weight * scale, np.arange(geometry.outputs) / 10)
    model = decomposed(proto, links, (*factors[:-1], factors[-1] * scale))
    done = model.finished()
    onnx.checker.check_model(done, full_check=True)
    own = proto.graph.node[0].op_type
    operators = [own if link.transposed == geometry.transposed else "Conv" for link in links]
    assert [n.op_type for n in done.graph.node] == operators
    assert operators.count("ConvTranspose") == geometry.transposed
    x = np.random.default_rng(1).normal(size=(2, geometry.inputs, *size_of(geometry))).astype(np.float32)
    assert_same(run(done, x), run(proto, x))


@each_case
def test_a_truncated_chain_is_the_conv_of_its_composed_kernel(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    rank = max(1, min(geometry.outputs, geometry.inputs) // 2)
    links, factors = method.links(geometry, rank), method.factors(geometry, weight, moment, rank)
    whole = compose(links, factors)
    assert whole.shape == weight.shape
    assert not np.allclose(whole, weight, atol=0.1)
    bias = np.ones(geometry.outputs)
    x = np.random.default_rng(1).normal(size=(2, geometry.inputs, *size_of(geometry))).astype(np.float32)
    chain = decomposed(model_of(geometry, weight, bias), links, factors).finished()
    assert_same(run(chain, x), run(model_of(geometry, whole, bias), x))


@each_case
def test_links_fit_together_and_factors_fit_the_links(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    for rank in sorted({1, 2, method.max_rank(geometry)}):
        links, factors = method.links(geometry, rank), method.factors(geometry, weight, moment, rank)
        assert [f.shape for f in factors] == [link.weight_shape for link in links]
        assert all(f.dtype == np.float64 for f in factors)
        assert (links[0].inputs, links[-1].outputs) == (geometry.inputs, geometry.outputs)
        assert all(a.outputs == b.inputs for a, b in pairwise(links))
        size = size_of(geometry)
        for link in links:
            size = link.output_size(size)
        assert size == geometry.output_size(size_of(geometry))


@each_case
def test_the_price_of_a_chain_is_what_its_graph_costs(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    links, factors = method.links(geometry, 2), method.factors(geometry, weight, moment, 2)
    model = decomposed(model_of(geometry, weight, np.zeros(geometry.outputs)), links, factors)
    table = costs(model)
    assert sum(c.macs for c in table.values()) == chain_macs(links, size_of(geometry))
    assert sum(c.parameters for c in table.values()) == chain_parameters(links)


@each_case
def test_factors_are_the_same_every_time(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    first, second = (method.factors(geometry, *drawn(geometry), 2) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@each_case
def test_more_rank_is_less_error(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    largest = method.max_rank(geometry)
    ranks = sorted({1, max(1, largest // 3), max(1, 2 * largest // 3), largest})
    losses = []
    for rank in ranks:
        factors = method.factors(geometry, weight, moment, rank)
        losses.append(error(weight, compose(method.links(geometry, rank), factors), moment))
    nothing = error(weight, np.zeros_like(weight), moment)
    assert all(b < 0.9 * a for a, b in pairwise([nothing, *losses]))
    assert losses[-1] < 1e-12 * nothing


@each_case
def test_the_moment_is_what_the_factors_are_fitted_to(name: str, shape: str) -> None:
    """On inputs of which some directions are much larger, the fit to them is better than the plain one."""
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, _ = drawn(geometry)
    rng, n = np.random.default_rng(3), geometry.features
    places = math.prod(geometry.kernel)
    channels = np.repeat(np.exp(1.5 * rng.normal(size=geometry.inputs)), places)
    mix = rng.normal(size=(n, n)) / math.sqrt(n) + 2 * np.eye(n)
    moment = (mix * channels) @ (mix * channels).T
    rank = max(1, min(geometry.outputs, geometry.inputs) // 2)
    links = method.links(geometry, rank)
    fitted, plain = (
        error(weight, compose(links, method.factors(geometry, weight, m, rank)), moment) for m in (moment, np.eye(n))
    )
    assert fitted < 0.999 * plain


@each_case
def test_a_weight_that_is_such_a_chain_is_found_again(name: str, shape: str) -> None:
    """Whatever the inputs are like: whitening by their moment is undone."""
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    links, rng = method.links(geometry, 2), np.random.default_rng(4)
    weight = compose(links, [rng.normal(size=link.weight_shape) for link in links])
    channels = np.repeat(np.exp(rng.normal(size=geometry.inputs)), math.prod(geometry.kernel))
    moment = drawn(geometry)[1] * np.outer(channels, channels)
    lost = error(weight, compose(links, method.factors(geometry, weight, moment, 2)), moment)
    # alternating least squares only comes near
    assert lost < (1e-3 if name == "cp" else 1e-12) * error(weight, np.zeros_like(weight), moment)


@each_method
@pytest.mark.parametrize("align", [1, 2, 4, 8])
@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.5, 0.75, 1.0])
def test_the_rank_for_a_ratio_is_the_largest_aligned_one_within_it(name: str, ratio: float, align: int) -> None:
    method = DECOMPOSITIONS[name]
    for geometry, size in [
        (Geometry(16, 24, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), (8, 8)),
        (Geometry(16, 16, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), (8, 8)),
        (Geometry(24, 16, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)), (7, 7)),
        (Geometry(64, 40), ()),
        (Geometry(32, 16, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), transposed=True), (5, 6)),
    ]:
        if method.why_not(geometry):
            continue
        budget = ratio * geometry.macs(size)
        within = [
            rank
            for rank in range(align, method.max_rank(geometry) + 1, align)
            if chain_macs(method.links(geometry, rank), size) <= budget
        ]
        assert method.rank_for(geometry, size, ratio, align) == (max(within) if within else None)


# The SVD is optimal


@pytest.mark.parametrize("shape", GEOMETRIES)
def test_the_svd_is_the_best_of_its_rank_in_the_norm_of_the_responses(shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS["svd"]
    weight, moment = drawn(geometry)
    rng = np.random.default_rng(2)
    for rank in (1, 2, method.max_rank(geometry) - 1):
        links, (first, last) = method.links(geometry, rank), method.factors(geometry, weight, moment, rank)
        loss = error(weight, compose(links, (first, last)), moment)
        singular = np.linalg.svd(weight.reshape(geometry.outputs, -1) @ np.linalg.cholesky(moment), compute_uv=False)
        assert loss == pytest.approx(np.sum(singular[rank:] ** 2), rel=1e-9)
        for size in (1e-3, 1e-1, 1):
            other = [f + size * rng.normal(size=f.shape) for f in (first, last)]
            assert error(weight, compose(links, other), moment) > loss


def test_the_svd_of_a_moment_of_low_rank_fits_the_responses_exactly() -> None:
    """Inputs that never leave a plane need no more than its dimensions."""
    geometry = Geometry(12, 8)
    weight, _ = drawn(geometry)
    plane = np.random.default_rng(5).normal(size=(12, 3))
    moment = plane @ plane.T
    whole = compose(
        DECOMPOSITIONS["svd"].links(geometry, 3), DECOMPOSITIONS["svd"].factors(geometry, weight, moment, 3)
    )
    np.testing.assert_allclose(whole @ plane, weight @ plane, atol=1e-9)


@each_case
def test_channels_that_are_always_zero_break_nothing(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    alive = np.repeat(np.arange(geometry.inputs) > 0, math.prod(geometry.kernel))
    moment = moment * np.outer(alive, alive)
    rank = method.max_rank(geometry)
    whole = compose(method.links(geometry, rank), method.factors(geometry, weight, moment, rank))
    assert np.isfinite(whole).all()
    assert error(weight, whole, moment) <= 1e-6 * error(weight, np.zeros_like(weight), moment)


@each_case
def test_a_layer_whose_inputs_never_change_breaks_nothing(name: str, shape: str) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    for rank in (1, method.max_rank(geometry)):
        factors = method.factors(geometry, weight, 0 * moment, rank)
        assert all(np.isfinite(f.astype(np.float32)).all() for f in factors)


def test_cp_is_not_offered_beyond_what_its_iterations_bear() -> None:
    method, geometry = DECOMPOSITIONS["cp"], Geometry(128, 128, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    assert method.rank_for(geometry, (8, 8), 1.0, 8) == 256
    assert chain_macs(method.links(geometry, 256 + 8), (8, 8)) < geometry.macs((8, 8))


def test_the_input_factor_of_tucker_spans_what_tensorly_finds() -> None:
    geometry, method = Geometry(12, 10, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), DECOMPOSITIONS["tucker"]
    weight, _ = drawn(geometry)
    found = method.factors(geometry, weight, np.eye(geometry.features), 5)[0].reshape(6, 12)
    (_, factors), _ = partial_tucker(
        weight.reshape(10, 12, 9), rank=[5, 6], modes=[0, 1], n_iter_max=ITERATIONS, svd="truncated_svd"
    )
    np.testing.assert_allclose(found.T @ found, factors[1] @ factors[1].T, atol=1e-4)


# The algebra they share


@pytest.mark.parametrize("exponent", [-80, 70])
@each_case
def test_the_share_that_is_lost_does_not_depend_on_the_scale_of_the_weights(
    name: str, shape: str, exponent: int
) -> None:
    geometry, method = GEOMETRIES[shape], DECOMPOSITIONS[name]
    weight, moment = drawn(geometry)
    rank = max(method.max_rank(geometry) // 2, 1)

    def lost(scale: float) -> float:
        factors = method.factors(geometry, weight * scale, moment, rank)
        return error(weight * scale, compose(method.links(geometry, rank), factors), moment) / scale**2

    np.testing.assert_allclose(lost(2.0**exponent), lost(1.0), rtol=1e-3, atol=1e-9 * error(weight, 0 * weight, moment))


def test_error_is_the_squared_error_of_the_responses() -> None:
    geometry = GEOMETRIES["3x3"]
    weight, _ = drawn(geometry)
    other, _ = drawn(geometry, seed=1)
    x = np.random.default_rng(2).normal(size=(geometry.features, 200))
    moment = x @ x.T / 200
    lost = (weight - other).reshape(geometry.outputs, -1) @ x
    assert error(weight, other, moment) == pytest.approx(np.sum(lost**2) / 200)
    assert error(weight, weight, moment) == 0


def test_mode_moment_is_the_mean_over_the_places_of_the_kernel() -> None:
    geometry = GEOMETRIES["3x3"]
    x = np.random.default_rng(0).normal(size=(100, 4, 9))
    patches = x.reshape(100, -1)
    expected = np.mean([x[:, :, k].T @ x[:, :, k] for k in range(9)], axis=0)
    np.testing.assert_allclose(mode_moment(patches.T @ patches, geometry), expected)


def test_compose_is_the_chain_of_convs_with_depthwise_links() -> None:
    rng = np.random.default_rng(0)
    links = (
        Geometry(3, 4, (1, 1), (1, 1), (0,) * 4, (1, 1)),
        Geometry(4, 4, (3, 3), (1, 1), (1,) * 4, (1, 1), groups=4),
        Geometry(4, 5, (1, 1), (1, 1), (0,) * 4, (1, 1)),
    )
    a, b, c = (rng.normal(size=link.weight_shape) for link in links)
    expected = np.einsum("or,ryx,ri->oiyx", c[..., 0, 0], b[:, 0], a[..., 0, 0])
    np.testing.assert_allclose(compose(links, (a, b, c)), expected)


@pytest.mark.parametrize(("shape", "leading"), [((5, 40), 3), ((40, 5), 5), ((7, 7), None), ((3, 9), 20)])
def test_singular_vectors_by_the_gram_matrix_are_those_of_the_svd(shape: tuple[int, int], leading: int | None) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    left, values, right = svd_by_gram(matrix, leading)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    n = min(*shape, leading or max(shape))
    np.testing.assert_allclose(values, s[:n], rtol=1e-8)
    np.testing.assert_allclose((left * values) @ right, (u[:, :n] * s[:n]) @ v[:n], atol=1e-8)
    np.testing.assert_allclose(left.T @ left, np.eye(n), atol=1e-8)
