"""Polishing: the factors without a closed form lose less than they did, by a gradient that is that of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from passes.decompose import DECOMPOSITIONS, Problem, compose, error
from passes.decompose.cp import _Terms
from passes.decompose.polish import Free, penalised, steps_for
from passes.decompose.spatial_svd import _Vertical
from passes.graph.layers import Geometry

GEOMETRY = Geometry(8, 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


def correlated(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n, n)) * rng.uniform(0.1, 2, n)
    return mix @ mix.T / n


def lost(name: str, weight: np.ndarray, moment: np.ndarray, rank: int) -> float:
    method = DECOMPOSITIONS[name]
    factors = method.factors(GEOMETRY, weight, moment, rank)
    return error(weight, compose(method.links(GEOMETRY, rank), factors), moment)


@pytest.mark.parametrize("name", ["cp", "spatial"])
def test_polished_factors_lose_less_and_less_with_more_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = np.random.default_rng(1).normal(size=GEOMETRY.weight_shape), correlated(72)
    for rank in (3, 6):
        losses = []
        for steps in (0, 3, 100):
            monkeypatch.setattr("passes.decompose.polish.STEPS", steps)
            losses.append(lost(name, weight, moment, rank))
        assert losses[2] < losses[1] < losses[0]
        assert losses[2] < 0.95 * losses[0]


FORMS = pytest.mark.parametrize(
    ("free", "shape"), [(_Terms(correlated(4)), (13, 5)), (_Vertical(correlated(12), 3), (5, 12))]
)


@FORMS
@pytest.mark.parametrize("penalty", [0.0, 1e-2])
def test_the_gradient_is_that_of_the_loss(free: Free, shape: tuple[int, int], penalty: float) -> None:
    rng, moment = np.random.default_rng(2), correlated(36)
    f, way, weight = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=(6, 36))

    def loss(step: float) -> tuple[float, np.ndarray]:
        return penalised(Problem.of(Geometry(36, 6), weight, moment), free, f + step * way, penalty)

    numeric = (loss(1e-5)[0] - loss(-1e-5)[0]) / 2e-5
    assert numeric == pytest.approx(float(np.vdot(loss(0.0)[1], way)), rel=1e-5)


@FORMS
def test_the_loss_is_the_error_and_the_squared_responses_of_single_terms(free: Free, shape: tuple[int, int]) -> None:
    rng, moment, penalty = np.random.default_rng(3), correlated(36), 1e-2
    f, weight = rng.normal(size=shape), rng.normal(size=(6, 36))
    kernel = free.times(f, np.eye(36))
    alone = np.einsum("mn,mn->m", kernel @ moment, kernel)
    # the least over A by plain least squares, on the kernel's rows and a row for each term alone
    root = np.linalg.cholesky(moment)
    rows = np.hstack([kernel @ root, np.diag(np.sqrt(penalty * alone))])
    last = np.linalg.lstsq(rows.T, np.hstack([weight @ root, np.zeros((6, len(kernel)))]).T, rcond=None)[0].T
    direct = error(weight, last @ kernel, moment) + penalty * float((last**2).sum(0) @ alone)
    found, _ = penalised(Problem.of(Geometry(36, 6), weight, moment), free, f, penalty)
    assert found == pytest.approx(direct / error(weight, np.zeros_like(weight), moment), rel=1e-6)


@pytest.mark.parametrize("name", ["cp", "spatial"])
def test_what_is_exact_stays_as_it_is(name: str) -> None:
    method, rng = DECOMPOSITIONS[name], np.random.default_rng(4)
    weight, moment = rng.normal(size=GEOMETRY.weight_shape), correlated(72)
    exact = method.solver(Problem.of(GEOMETRY, weight, moment))(method.max_rank(GEOMETRY))
    assert method.polished(Problem.of(GEOMETRY, weight, moment), exact) is exact
    chain = tuple(rng.normal(size=link.weight_shape) for link in method.links(GEOMETRY, 2))
    assert method.polished(Problem.of(GEOMETRY, compose(method.links(GEOMETRY, 2), chain), moment), chain) is chain


@pytest.mark.parametrize("name", ["cp", "spatial"])
@pytest.mark.parametrize("alive", [0, 2])
def test_kernels_of_zeros_have_a_chain(name: str, alive: int) -> None:
    weight = np.random.default_rng(5).normal(size=GEOMETRY.weight_shape)
    weight[alive:] = 0
    factors = DECOMPOSITIONS[name].factors(GEOMETRY, weight, correlated(72), 8)
    assert all(np.isfinite(factor).all() for factor in factors)
    assert lost(name, weight, correlated(72), 8) <= error(weight, np.zeros_like(weight), correlated(72))


@pytest.mark.parametrize("seed", range(5))
def test_terms_that_nearly_cancel_are_not_sought(seed: int) -> None:
    """The best CP of rank 2 of a tensor of border rank 2 is the limit of terms without bound."""
    rng = np.random.default_rng(seed)
    a, b, c = (np.linalg.qr(rng.normal(size=(n, 2)))[0] for n in (6, 4, 9))
    pairs = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    weight = sum(np.einsum("o,i,k->oik", a[:, x], b[:, y], c[:, z]) for x, y, z in pairs).reshape(6, 4, 3, 3)
    geometry = Geometry(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    first, middle, last = DECOMPOSITIONS["cp"].factors(geometry, weight, np.eye(36), 2)
    sizes = [np.linalg.norm(factor.reshape(2, -1), axis=1) for factor in (first, middle, last.swapaxes(0, 1))]
    assert np.prod(sizes, axis=0).max() < 2 * np.linalg.norm(weight)


def test_large_layers_get_fewer_steps() -> None:
    assert steps_for(64, 576) > steps_for(256, 2304) > steps_for(256, 4608) > steps_for(2048, 18432) == 0
