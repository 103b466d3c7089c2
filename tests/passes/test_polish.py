"""Polishing: the factors without a closed form lose less than they did, by a gradient that is the error's."""

from __future__ import annotations

import numpy as np
import pytest

from passes.decompose import DECOMPOSITIONS, compose, error, polish
from passes.decompose.cp import _Terms
from passes.decompose.spatial_svd import _Vertical
from passes.graph.layers import Geometry

RNG = np.random.default_rng(0)
GEOMETRY = Geometry(8, 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


def correlated(n: int) -> np.ndarray:
    mix = RNG.normal(size=(n, n)) * RNG.uniform(0.1, 2, n)
    return mix @ mix.T / n


@pytest.mark.parametrize("name", ["cp", "spatial"])
def test_polished_factors_lose_less(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment, method = RNG.normal(size=GEOMETRY.weight_shape), correlated(72), DECOMPOSITIONS[name]

    def lost(rank: int) -> float:
        factors = method.factors(GEOMETRY, weight, moment, rank)
        return error(weight, compose(method.links(GEOMETRY, rank), factors), moment)

    polished = [lost(rank) for rank in (3, 6)]
    monkeypatch.setattr("passes.decompose.polish.WORK", 0)
    assert all(own < 0.95 * lost(rank) for own, rank in zip(polished, (3, 6), strict=True))


@pytest.mark.parametrize(("free", "shape"), [(_Terms(correlated(4)), (13, 5)), (_Vertical(correlated(12), 3), (5, 12))])
def test_the_gradient_by_the_factors_is_that_by_the_kernel_pulled_back(
    free: polish.Free, shape: tuple[int, int]
) -> None:
    f, way = RNG.normal(size=(2, *shape))
    gradient = RNG.normal(size=free.expand(f).shape)
    numeric = np.vdot(free.expand(f + 1e-5 * way) - free.expand(f - 1e-5 * way), gradient) / 2e-5
    assert numeric == pytest.approx(float(np.vdot(free.pull(f, gradient), way)), rel=1e-6)


def test_what_is_exact_stays_as_it_is() -> None:
    start, terms = RNG.normal(size=(13, 2)), _Terms(np.eye(4))
    assert polish.polish(RNG.normal(size=(4, 2)) @ terms.expand(start), np.eye(36), terms, start) is start
    assert polish.polish(np.zeros((4, 36)), np.eye(36), terms, start) is start


def test_terms_that_nearly_cancel_are_not_sought() -> None:
    """The best CP of rank 2 of a tensor of border rank 2 is the limit of terms without bound (de Silva & Lim, 2008)."""
    a, b, c = (np.linalg.qr(RNG.normal(size=(n, 2)))[0] for n in (6, 4, 9))
    pairs = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    weight = sum(np.einsum("o,i,k->oik", a[:, x], b[:, y], c[:, z]) for x, y, z in pairs).reshape(6, 4, 3, 3)
    geometry = Geometry(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    first, middle, last = DECOMPOSITIONS["cp"].factors(geometry, weight, np.eye(36), 2)
    sizes = [np.linalg.norm(factor.reshape(2, -1), axis=1) for factor in (first, middle, last.swapaxes(0, 1))]
    assert np.prod(sizes, axis=0).max() < 10 * np.linalg.norm(weight)
