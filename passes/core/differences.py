"""Differences of arrays that may hold infinities, such as the scores of classes that are masked out."""

from __future__ import annotations

import numpy as np

__all__ = ["difference", "relative_difference"]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, float64; infinities of one sign do not differ."""
    return np.subtract(a.astype(np.float64), b.astype(np.float64), out=np.zeros(a.shape), where=a != b)


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference, as a share of the largest finite value of the first."""
    largest = np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=1e-30)
    return float(np.abs(difference(a, b)).max(initial=0.0) / largest)
