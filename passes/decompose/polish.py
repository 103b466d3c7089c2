"""Polishes the factors of a chain that have no closed form, in the norm of the layer's responses.

A chain's dense kernel is Ŵ = A J(f): A (O, m) are the weights of its last link, which least squares gives for any J,
and J (m, n) is made of the other factors f. So the error tr((W - A J) M (W - A J)ᵀ) is a function of f alone, with A at
its least-squares solution, and its gradient is that of the error with A held fixed. (This is the variable projection
of Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973.) L-BFGS makes it smaller.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from passes.core.linear_algebra import least_squares, ridge

__all__ = ["Free", "polish"]

# Steps of L-BFGS, at most: CP loses about half as much after 100 of them (docs/experiments.md).
STEPS = 100
# Upper bound on the multiplications of all products J M for one chain: two seconds of a core or so. Large layers get
# fewer steps.
WORK = 2e10
# Strength of a ridge penalty on A, as a share of the mean size of what the last link reads at the start. Without it, CP
# finds terms that are alike and nearly cancel each other, which rounding does not bear.
RIDGE = 1e-3
# An error of less than this share of the response is exact.
EXACT = 1e-12


class Free(Protocol):
    """The form of J: what it is made of is one array f, whose entries matter about alike."""

    def expand(self, f: np.ndarray) -> np.ndarray:
        """J(f), (m, n): what the last link's patches are of the layer's patches."""

    def pull(self, f: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The gradient by f of a function of J, from that by J (m, n)."""


def polish(weight: np.ndarray, moment: np.ndarray, free: Free, start: np.ndarray) -> np.ndarray:
    """An f that loses less than the one to start with; the one to start with where none is found.

    Args:
        weight: W, (O, n), float64.
        moment: M, (n, n), float64.
        free: the form of J.
        start: f to start with, float64.
    """
    first = free.expand(start)
    steps = min(STEPS, int(WORK / (first.size * len(moment))))
    if steps < 1:
        return start
    answers = weight @ moment
    response = float(np.vdot(weight, answers))
    if response <= 0:
        return start
    penalty = ridge(first @ moment @ first.T, RIDGE)

    def share_lost(flat: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
        f = flat.reshape(start.shape)
        kernel = free.expand(f)
        half_way = kernel @ moment
        features = half_way @ kernel.T + penalty * np.eye(len(kernel))
        last = least_squares(features, answers @ kernel.T)
        missing = answers - last @ half_way  # (W - A J) M, whose product with W is the error and the penalty
        gradient = free.pull(f, last.T @ missing * (-2 / response))
        return float(np.vdot(weight, missing)) / response, gradient.ravel()

    before = share_lost(start.ravel(), 0.0)[0]
    if before < EXACT:
        return start
    with threadpool_limits(1, "blas"):  # of small products, where threads that wait for each other cost most
        found = minimize(share_lost, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    return found.reshape(start.shape) if share_lost(found, 0.0)[0] < before else start
