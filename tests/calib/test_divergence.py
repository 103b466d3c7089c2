"""KL divergence and top-1 by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calib.measure.divergence import SURE, divergence, divergences, kl_divergence, log_probabilities, temperature, top1

P = np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]])
Q = np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
BY_HAND = (
    0.5 * math.log(2) + 0.25 * math.log(0.5),
    0.8 * math.log(8) + 0.1 * math.log(1 / 8),
    (2 * math.log(5 / 3) + math.log(5 / 9)) / 3,
)


def logits(p: np.ndarray) -> np.ndarray:
    """Logits of these probabilities, moved by another constant in each row."""
    return np.log(p) + np.arange(len(p))[:, None] - 5


@pytest.mark.parametrize("a", [P, logits(P)], ids=["probabilities", "logits"])
@pytest.mark.parametrize("b", [Q, logits(Q)], ids=["probabilities", "logits"])
def test_mean_divergence_by_hand(a: np.ndarray, b: np.ndarray) -> None:
    assert kl_divergence([a], [b]) == pytest.approx(sum(BY_HAND) / 3, rel=1e-12)


def test_every_image_counts_the_same_however_batched() -> None:
    whole = kl_divergence([P], [Q])
    assert kl_divergence([P[:1], P[1:]], [Q[:1], Q[1:]]) == pytest.approx(whole, rel=1e-12)
    assert kl_divergence([P[:1]], [Q[:1]]) == pytest.approx(BY_HAND[0], rel=1e-12)


def test_it_is_from_the_first_to_the_second_and_nothing_to_itself() -> None:
    assert kl_divergence([P], [Q]) != pytest.approx(kl_divergence([Q], [P]), rel=1e-3)
    assert kl_divergence([logits(P)], [P]) == pytest.approx(0, abs=1e-12)


def test_a_class_that_the_reference_excludes_adds_nothing() -> None:
    a, b = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert kl_divergence([a], [b]) == pytest.approx(math.log(2))


def test_logits_of_any_size_give_finite_divergence() -> None:
    a, b = np.array([[0.0, 2000.0]]), np.array([[3000.0, 0.0]])
    assert kl_divergence([a], [b]) == pytest.approx(3000)


def test_non_negative_logits_are_not_taken_for_probabilities() -> None:
    np.testing.assert_allclose(np.exp(log_probabilities(np.array([[0.0, math.log(3)]]))), [[0.25, 0.75]])


def test_trailing_axes_of_one_do_not_matter() -> None:
    assert kl_divergence([P[:, :, None, None]], [Q]) == pytest.approx(sum(BY_HAND) / 3)
    assert top1([P[:, :, None, None]], np.array([0, 0, 0])) == 1


def test_top1_counts_over_uneven_batches() -> None:
    assert top1([Q[:1], Q[1:]], np.array([1, 0, 2])) == pytest.approx(2 / 3)
    assert top1([Q], np.array([0, 0, 0])) == 0


def test_all_outputs_count_classes_by_kl_and_maps_by_their_squared_error() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 2, 5, 5))
    by_hand = ((a - b) ** 2).mean() / (2 * a.var())
    assert divergence([[P[:1], P[1:]], [a[:1], a[1:]]], [[Q[:1], Q[1:]], [b[:1], b[1:]]]) == pytest.approx(
        sum(BY_HAND) / 3 + by_hand
    )
    assert divergence([[P], [P]], [[Q], [Q]]) == pytest.approx(2 * sum(BY_HAND) / 3)
    assert divergence([[P], [a]], [[P], [a]]) == 0
    assert divergence([[P], [a * 0]], [[P], [a * 0]]) == 0


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_at_the_temperature_the_network_is_as_sure_as_said_whatever_the_scale_of_its_logits(scale: float) -> None:
    z = np.random.default_rng(0).standard_normal((500, 10)) * scale
    heat = temperature([z[:200], z[200:]])
    assert np.exp(log_probabilities(z / heat)).max(1).mean() == pytest.approx(SURE, abs=1e-3)
    assert heat == pytest.approx(temperature([z / scale * 100]) * scale / 100, rel=1e-2)


@pytest.mark.parametrize("z", [np.eye(10) / 2, np.zeros((4, 10)), np.ones((4, 1)), np.eye(10) * 1e6], ids=str)
def test_one_that_is_never_or_always_sure_has_none(z: np.ndarray) -> None:
    assert temperature([z]) == 1.0


def test_at_any_temperature_small_differences_of_logits_count_about_as_much() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((400, 10))
    b = a + 1e-3 * rng.standard_normal(a.shape)
    cold, warm, hot = (divergences([[a]], [[b]], heat=heat).mean() for heat in (1.0, 3.0, 9.0))
    assert cold == pytest.approx(divergence([[a]], [[b]]))
    assert warm == pytest.approx(cold, rel=0.3)
    assert hot == pytest.approx(1e-6 / 2 * 0.9, rel=0.1)  # half the variance of the logits' differences
