"""How far what was found on some images may be from what holds for all images of their kind: 95 % intervals."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from hmc_onnx.records.comparison import Interval

__all__ = ["of_change", "of_mean", "of_share"]

# Standard errors to each side of a mean that hold 95 % of a normal distribution.
TWO_SIDES = 1.96


def of_share(right: np.ndarray) -> Interval:
    """The interval of a share (Wilson's, which holds near 0 and 1 too).

    Args:
        right: of each image whether it counts, bool (N,); or the share of its places that do, float (N,).
    """
    if np.isin(right, (0, 1)).all():
        found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return Interval(low=float(found.low), high=float(found.high))
    return of_mean(right)


def of_mean(values: np.ndarray) -> Interval:
    """The interval of a mean by the normal distribution, of one value an image (N,)."""
    half = TWO_SIDES * float(values.std()) / len(values) ** 0.5
    return Interval(low=float(values.mean()) - half, high=float(values.mean()) + half)


def of_change(before: np.ndarray, after: np.ndarray) -> Interval:
    """The interval of the change of a share, both measured on the same images, bool (N,).

    One image more counts as changed than did: of a few images that none has changed says little.
    """
    change = after.astype(float) - before
    half = TWO_SIDES * float((change**2).sum() + 1) ** 0.5 / len(change)
    return Interval(low=float(change.mean()) - half, high=float(change.mean()) + half)
