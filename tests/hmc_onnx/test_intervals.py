"""The 95 % intervals hold what is true of all images, also where there are few, or few of them have most of a mean."""

from __future__ import annotations

import numpy as np
import pytest

from hmc_onnx.comparison.intervals import of_change, of_mean, of_share

TRIES = 400


def covered(images: int, found: str) -> float:
    """Share of the samples of `images` images in whose interval the true value is.

    Of all images one in 25 is answered otherwise, with a divergence of about 1.5 nats; the others have hardly any. One
    in 50 is right before and not after, and one in 100 the other way round.
    """
    rng, inside = np.random.default_rng(0), []
    for _ in range(TRIES):
        other = rng.random(images) < 0.04
        if found == "mean":
            true, interval = (
                0.04 * 1.5 + 0.96 * 0.003,
                of_mean(np.where(other, rng.exponential(1.5, images), 0.003), 2.3),
            )
        elif found == "share":
            true, interval = 0.96, of_share(~other)
        else:
            kind = rng.random(images)
            before, after = (kind < 0.9) | (kind >= 0.98), (kind < 0.9) | ((kind >= 0.97) & (kind < 0.98))
            true, interval = -0.01, of_change(before, after)
        inside.append(interval.low <= true <= interval.high)
    return float(np.mean(inside))


@pytest.mark.parametrize("images", [20, 50, 200, 1000])
@pytest.mark.parametrize("found", ["mean", "share", "change"])
def test_the_true_value_is_in_the_interval(images: int, found: str) -> None:
    assert covered(images, found) > 0.88  # nearly 0.95: no short rule has that exactly where values are rare and large


def test_more_images_tell_more() -> None:
    values = np.tile([0.0, 0.0, 0.0, 0.4], 250)
    few, many = of_mean(values[:100], 2.3), of_mean(values, 2.3)
    assert few.low <= many.low < 0.1 < many.high <= few.high


def test_a_divergence_is_never_below_zero() -> None:
    assert of_mean(np.zeros(50), 2.3).low == 0
