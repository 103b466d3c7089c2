"""Polishes the factors of a chain that have no closed form, in the norm of the layer's responses.

A chain's dense kernel is Ŵ = A J(f): A (O, m) are the weights of its last link, which least squares gives for any J,
and J (m, n) is made of the other factors f. So the error tr((W - A J) M (W - A J)ᵀ) is a function of f alone, with A at
its least-squares solution, and its gradient is that of the error with A held fixed. (This is the variable projection
of Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973.) L-BFGS makes it smaller.

The best CP of a rank may be a limit of terms that grow without bound and cancel each other (de Silva & Lim, SIAM J.
Matrix Anal. Appl. 30, 2008), which rounding does not bear. So the squared responses of the m terms, each alone, are
added to the error with a small weight.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.optimize import minimize

from passes.core.blas import one_blas_thread
from passes.core.linear_algebra import least_squares
from passes.decompose.base import Problem

__all__ = ["Free", "penalised", "polish", "steps_for"]

# Steps of L-BFGS, at most (docs/experiments.md), and at least: fewer take seconds of a large layer and gain next to
# nothing.
STEPS, LEAST_STEPS = 100, 3
# Multiplications of all products J M for one chain, about at most: a few seconds of a core. Large layers get fewer
# steps.
WORK = 2e10
# Weight of the squared responses of single terms, as a share of the error's.
PENALTY = 1e-3
# Share of the response below which an error is rounding, as least squares is damped by 1e-10.
EXACT = 1e-9
# With at most so many steps, a chain's products J M are large enough for several threads; threads slow small ones down.
THREADED = 20


class Free(Protocol):
    """How J is made of the free factors: f is one array that holds them all, scaled so that its entries weigh alike."""

    def times(self, f: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """J(f) X (m, p) for X (n, p); J is what the last link's patches are of the layer's patches."""

    def pull(self, f: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The gradient by f of a function of J, from that by J, which is L R, with L (m, k) and R (k, n)."""


def steps_for(terms: int, features: int) -> int:
    """The steps that a chain gets whose last link reads m terms, of a layer of n features; none where 0."""
    steps = min(STEPS, int(WORK / (terms * features**2)))
    return steps if steps >= LEAST_STEPS else 0


def polish(problem: Problem, free: Free, start: np.ndarray, steps: int) -> np.ndarray:
    """An f that loses less than the one to start with; the one to start with where none is found.

    Args:
        problem: the layer.
        free: the form of J.
        start: f to start with, float64.
        steps: see `steps_for`.
    """

    def lost(flat: np.ndarray, penalty: float = PENALTY) -> tuple[float, np.ndarray]:
        value, gradient = penalised(problem, free, flat.reshape(start.shape), penalty)
        return value, gradient.ravel()

    before = lost(start.ravel(), 0.0)[0]
    if not before > EXACT:
        return start
    with one_blas_thread(steps > THREADED):
        found = minimize(lost, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    return found.reshape(start.shape) if lost(found, 0.0)[0] < before else start


def penalised(problem: Problem, free: Free, f: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    """The least of error + penalty · Σ_m ‖A_m‖² (J M Jᵀ)_mm over A, as a share of the response, and its gradient by f.

    Args:
        problem, free, f: as for `polish`.
        penalty: weight of the squared responses of single terms.

    Returns:
        0 and zeros where the layer answers nothing.
    """
    response, answers = problem.response, problem.answers
    if response <= 0:
        return 0.0, np.zeros_like(f)
    half_way = free.times(f, problem.moment)
    features, right = free.times(f, half_way.T), free.times(f, answers.T)  # J M Jᵀ and J M Wᵀ
    last = least_squares(features + penalty * np.diag(np.diag(features)), right.T)
    # with the penalty, A is such that the error is tr(W M Wᵀ) - tr(A J M Wᵀ)
    value = (response - float(np.vdot(last, right.T))) / response
    both = last.T @ last
    both[np.diag_indices_from(both)] *= 1 + penalty
    # by J: -2 Aᵀ (W - A J) M + 2 penalty diag(Aᵀ A) J M
    by_f = free.pull(f, last.T, answers) - free.pull(f, both, half_way)
    return value, by_f * (-2 / response)
