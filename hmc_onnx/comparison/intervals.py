"""How far what was found on some images may be from what holds for all images of their kind: 95 % intervals."""

from __future__ import annotations

import numpy as np

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
        from scipy.stats import binomtest  # noqa: PLC0415  its import takes longer than all else here

        found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return Interval(low=float(found.low), high=float(found.high))
    return of_mean(right, 1.0)


def of_mean(values: np.ndarray, largest: float) -> Interval:
    """The interval of a mean, by the normal distribution.

    Most of a mean divergence comes from a few images in a hundred. Where there are few images, these may be missing, so
    one image more counts as `largest` away from the mean.

    Args:
        values: one value an image, at least 0, (N,).
        largest: about the largest value that an image can have.
    """
    mean = float(values.mean())
    half = TWO_SIDES * (float(((values - mean) ** 2).sum()) + largest**2) ** 0.5 / len(values)
    return Interval(low=max(mean - half, 0.0), high=mean + half)


def of_change(before: np.ndarray, after: np.ndarray) -> Interval:
    """The interval of the change of a share, both measured on the same images, bool (N,).

    One image more counts as changed than did: of a few images that none has changed says little.
    """
    change = after.astype(float) - before
    half = TWO_SIDES * float((change**2).sum() + 1) ** 0.5 / len(change)
    return Interval(low=float(change.mean()) - half, high=float(change.mean()) + half)
