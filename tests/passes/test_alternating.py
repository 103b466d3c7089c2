"""Alternating least squares: tensorly's iterates, in float32 and float64, also where a rank exceeds an axis."""

from __future__ import annotations

import numpy as np
import pytest
from tensorly.decomposition import parafac

from passes.decompose import alternating
from passes.decompose.tensorly_apart import svd_by_gram

SHAPES = [((6, 8, 9), 5), ((8, 6, 9), 12), ((12, 3, 25), 20), ((3, 12, 9), 4)]


def tensor_of(factors: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.einsum("or,ir,kr->oik", *factors)


@pytest.mark.parametrize(("shape", "rank"), SHAPES)
@pytest.mark.parametrize("most", [1, 30])
def test_the_factors_are_those_of_tensorly(
    shape: tuple[int, ...], rank: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternating, "MOST", most)
    monkeypatch.setattr(alternating, "GAIN", 0.0)
    tensor = np.random.default_rng(0).normal(size=shape)
    options = {"n_iter_max": most, "tol": 0, "init": "svd", "svd": svd_by_gram, "random_state": 0}
    weights, (a, b, c) = parafac(tensor, rank, normalize_factors=True, **options)
    np.testing.assert_allclose(
        tensor_of(alternating.alternate(tensor, rank)), tensor_of((a * weights, b, c)), atol=1e-6 * most
    )


def test_a_tensor_of_few_terms_is_found_in_float32() -> None:
    rng = np.random.default_rng(0)
    tensor = tensor_of(tuple(rng.normal(size=(n, 3)) for n in (8, 7, 9))).astype(np.float32)
    found = alternating.alternate(tensor, 3)
    assert {part.dtype for part in found} == {np.dtype(np.float32)}
    assert np.linalg.norm(tensor_of(found) - tensor) < 1e-2 * np.linalg.norm(tensor)


def test_iterations_end_where_they_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    solved, calls = alternating._solved, []
    monkeypatch.setattr(alternating, "_solved", lambda *both: calls.append(1) or solved(*both))
    tensor = np.einsum("o,i,k->oik", *(np.arange(1.0, n) for n in (5, 6, 10)))
    alternating.alternate(tensor, 1)
    assert len(calls) == 3 * 2  # exact after one round, which the second shows


@pytest.mark.parametrize("rank", [1, 4, 40])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_more_terms_than_a_tensor_has_do_no_harm(rank: int, scale: float) -> None:
    tensor = np.zeros((16, 16, 9), np.float32)
    tensor[..., 4] = scale * np.eye(16)
    found = alternating.alternate(tensor, rank)
    lost = np.linalg.norm(tensor_of(found) - tensor) / np.linalg.norm(tensor)
    assert lost < (1e-4 if rank >= 16 else 1.0)


def test_a_tensor_of_zeros_has_factors_of_zeros() -> None:
    found = alternating.alternate(np.zeros((4, 5, 9), np.float32), 3)
    assert not tensor_of(found).any() and all(np.isfinite(part).all() for part in found)
