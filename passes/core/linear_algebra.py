"""Least squares in second moments, safe where inputs never change, are always zero, or are copies of each other."""

from __future__ import annotations

import numpy as np

__all__ = ["damped", "least_squares", "ridge", "root"]


def ridge(moment: np.ndarray, share: float) -> float:
    """A share of the mean eigenvalue of a moment (n, n)."""
    return share * _positive(float(np.trace(moment)) / len(moment))


def damped(moment: np.ndarray, share: float) -> np.ndarray:
    """A moment (n, n) with a share of its mean eigenvalue added to the diagonal, so that it can be inverted."""
    return moment + ridge(moment, share) * np.eye(len(moment))


def root(moment: np.ndarray, floor: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
    """M^½ and M^-½ of a symmetric matrix, with eigenvalues below `floor` times the largest raised to it."""
    values, vectors = np.linalg.eigh(moment)
    values = np.sqrt(np.maximum(values, floor * _positive(values[-1])))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def least_squares(features: np.ndarray, targets: np.ndarray, floor: float = 1e-10) -> np.ndarray:
    """B (O, m) that minimises E‖t - B z‖² from E[z zᵀ] (m, m) and E[t zᵀ] (O, m).

    A multiple `floor` of the mean eigenvalue is added to the diagonal, so that features which are always
    zero, or copies of each other, get small coefficients instead of none.
    """
    return np.linalg.solve(damped(features, floor), targets.T).T


def _positive(scale: float) -> float:
    """1 in place of the scale of inputs that are always the same, for which every answer is as good."""
    return scale if scale > np.finfo(float).tiny ** 0.5 else 1.0
