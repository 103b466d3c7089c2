"""Least squares and inverses from second moments, also where rounding has made these indefinite."""

from __future__ import annotations

import numpy as np
import pytest

from passes.core.linear_algebra import damped, least_squares, lower_inverse, mirror, principal, whitening


def test_least_squares_is_numpys() -> None:
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(500, 6)), rng.normal(size=(500, 3))
    expected = np.linalg.lstsq(z, t, rcond=None)[0].T
    np.testing.assert_allclose(least_squares(z.T @ z, t.T @ z), expected, rtol=1e-7, atol=1e-9)


def test_least_squares_shares_between_copies_and_gives_nothing_to_zeros() -> None:
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(500, 2)), rng.normal(size=(500, 1))
    z = np.column_stack([z, z[:, 1], np.zeros(500)])
    found = least_squares(z.T @ z, t.T @ z)
    assert found[0, 1] == pytest.approx(found[0, 2], rel=1e-4)
    assert found[0, 3] == 0
    expected = np.linalg.lstsq(z[:, :2], t, rcond=None)[0]
    np.testing.assert_allclose(z @ found.T, z[:, :2] @ expected, atol=1e-6)


def test_a_moment_whose_least_eigenvalue_is_below_zero_by_rounding_is_solved_all_the_same() -> None:
    moment = np.diag([1.0, -1e-6])
    np.testing.assert_allclose(least_squares(moment, np.array([[1.0, 2e-6]])), [[1.0, -2.0]], rtol=1e-3)


def test_the_inverse_is_the_inverse_of_moments_that_are_hardly_definite_too() -> None:
    x = np.random.default_rng(0).normal(size=(30, 12))
    for moment in (x.T @ x, np.diag([1.0, -1e-6])):
        lower = np.tril(lower_inverse(moment))
        np.testing.assert_allclose((lower + np.tril(lower, -1).T) @ moment, np.eye(len(moment)), atol=1e-9)


def test_whitening_gives_the_factor_of_a_moment_and_its_inverse() -> None:
    x = np.random.default_rng(0).normal(size=(30, 12))
    factor, inverse = whitening(x.T @ x)
    np.testing.assert_allclose(factor @ factor.T, damped(x.T @ x, 1e-8), atol=1e-12)
    np.testing.assert_allclose(inverse @ factor, np.eye(12), atol=1e-9)
    assert not np.triu(factor, 1).any() and not np.triu(inverse, 1).any()
    factor, inverse = whitening(np.diag([1.0, 0.0]))  # an input that is always zero
    np.testing.assert_allclose(factor, np.diag([1, np.sqrt(5e-9)]), atol=1e-8)
    np.testing.assert_allclose(inverse, np.diag([1, 1 / np.sqrt(5e-9)]), atol=1e-4)
    assert all(np.isfinite(m).all() for m in whitening(np.zeros((2, 2))))


@pytest.mark.parametrize("n", [1, 7, 256, 300])
def test_mirroring_copies_the_upper_triangle_to_the_lower(n: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(n, n))
    expected = np.where(np.tri(n, k=-1, dtype=bool), matrix.T, matrix)
    mirror(matrix)
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_principal_directions_come_in_order(dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(dtype)
    values, vectors = principal(x.T @ x)
    assert (np.diff(values) <= 0).all() and vectors.dtype == dtype
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, x.T @ x, atol=1e-4)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-5)
