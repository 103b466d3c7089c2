"""The weights of one layer by least squares, and how far they may go from the layer's own."""

from __future__ import annotations

import numpy as np
import pytest

from calib.measure.moments import Moments
from hmc_onnx.rewriting.fitting import RIDGE, STRENGTHS, Fit, fitted_bias
from passes.core.linear_algebra import damped, ridge

FEATURES, OUTPUTS = 24, 6


def drawn(images: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches (images, FEATURES), noisy answers (images, OUTPUTS), and the weights behind them."""
    rng = np.random.default_rng(seed)
    true = np.random.default_rng(99).normal(size=(OUTPUTS, FEATURES))
    x = rng.normal(size=(images, FEATURES)) + 3
    return x, x @ true.T + noise * rng.normal(size=(images, OUTPUTS)), true


def fit(images: int, noise: float) -> Fit:
    x, t, _ = drawn(images, noise)
    found = Fit(FEATURES, images)
    for start in range(0, images, 7):
        found.update(x[start : start + 7], t[start : start + 7], len(x[start : start + 7]))
    return found


def test_moments_of_parts_are_those_of_the_whole() -> None:
    x, t, _ = drawn(50, 1.0)
    parts, whole = [Moments(), Moments()], Moments()
    parts[0].update(x[:20] + 100, t[:20])
    parts[1].update(x[20:], t[20:] - 50)
    whole.update(np.concatenate([x[:20] + 100, x[20:]]), np.concatenate([t[:20], t[20:] - 50]))
    joined = parts[0].joined(parts[1])
    assert joined.count == 50
    for name in ("mean", "target_mean", "second", "cross"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert Moments().joined(whole) is whole and whole.joined(Moments()) is whole


def test_with_plenty_of_images_it_is_plain_least_squares_with_a_small_ridge() -> None:
    x, t, _ = drawn(8 * FEATURES, 0.5)
    whole, own = Moments(), np.ones((OUTPUTS, FEATURES))
    whole.update(x, t)
    found = fit(8 * FEATURES, 0.5)
    right = whole.cross + ridge(whole.second, RIDGE) * own
    np.testing.assert_allclose(found.weight(own), np.linalg.solve(damped(whole.second, RIDGE), right.T).T, rtol=1e-9)


@pytest.mark.parametrize("images", [8, 16, 32, 64])
def test_with_few_images_it_is_no_worse_on_new_ones_than_the_layers_own(images: int) -> None:
    new, _, true = drawn(2000, 0.0, seed=1)
    rng = np.random.default_rng(2)
    own = true + 0.1 * rng.normal(size=true.shape)  # near the truth, as pretrained weights are
    found = fit(images, noise=3.0)
    errors = []
    for weight in (own, found.weight(own)):
        answers = new @ weight.T + (fitted_bias(weight, found.moments.parts[0]) if weight is not own else 0)
        errors.append(float(((answers - new @ true.T - (answers - new @ true.T).mean(0)) ** 2).mean()))
    assert errors[1] <= 1.1 * errors[0]


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0, 30.0, 300.0])
def test_the_strength_is_the_one_with_which_each_half_answers_best_for_the_other(noise: float) -> None:
    x, t, true = drawn(48, noise)
    own = true + 0.3 * np.random.default_rng(2).normal(size=true.shape)
    found = Fit(FEATURES, 48)
    found.update(x, t, 48)

    def fitted(moments: Moments, strength: float) -> np.ndarray:
        right = moments.cross + ridge(moments.second, strength) * own
        return np.linalg.solve(damped(moments.second, strength), right.T).T

    halves = [Moments(), Moments()]
    for start, half in enumerate(halves):
        half.update(x[start::2], t[start::2])

    def lost(strength: float) -> float:
        errors = [
            fitted(a, strength) @ (x[i::2] - b.mean).T - (t[i::2] - b.target_mean).T
            for i, (a, b) in enumerate(zip(halves[::-1], halves, strict=True))
        ]
        return sum(float((e**2).mean()) for e in errors)

    best = min(STRENGTHS, key=lost)
    np.testing.assert_allclose(found.weight(own), fitted(found.moments.parts[0], best), rtol=1e-6, atol=1e-9)


def test_with_few_images_and_no_noise_the_data_are_followed() -> None:
    _, _, true = drawn(1, 0.0)
    own = np.zeros_like(true)
    found = fit(3 * FEATURES, noise=0.0).weight(own)
    assert np.abs(found - true).max() < 0.05 * np.abs(true).max()


def test_all_tokens_of_an_image_are_in_one_half() -> None:
    """So copies of a token say no more than the token: between the halves they would look like proof."""
    x, t, _ = drawn(30, 1.0)
    own = np.zeros((OUTPUTS, FEATURES))
    once, copied = Fit(FEATURES, 30), Fit(FEATURES, 30)
    once.update(x, t, 30)
    copied.update(x.repeat(4, axis=0), t.repeat(4, axis=0), 30)
    np.testing.assert_allclose(copied.weight(own), once.weight(own), rtol=1e-6, atol=1e-9)


def test_rows_that_are_not_by_image_are_halved_all_the_same() -> None:
    x, t, _ = drawn(31, 0.1)
    found = Fit(FEATURES, 31)
    found.update(x, t, 4)
    found.update(x[:1], t[:1], 4)
    assert sum(part.count for part in found.moments.parts) == 32
