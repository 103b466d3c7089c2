"""KL divergence and top-1 by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from calib.measure.divergence import (
    SURE,
    choices,
    divergence,
    divergences,
    kl_divergence,
    largest_difference,
    log_probabilities,
    of_no_answer,
    settled,
    temperature,
    top1,
)
from passes.core.errors import ModelError
from passes.graph.outputs import Output

P = np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]])
Q = np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
BY_HAND = (
    0.5 * math.log(2) + 0.25 * math.log(0.5),
    0.8 * math.log(8) + 0.1 * math.log(1 / 8),
    (2 * math.log(5 / 3) + math.log(5 / 9)) / 3,
)


LOGITS = Output("y", "scores", "y")


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
    own = temperature([z[:200], z[200:]])
    assert np.exp(log_probabilities(z / own)).max(1).mean() == pytest.approx(SURE, abs=1e-3)
    assert own == pytest.approx(temperature([z / scale * 100]) * scale / 100, rel=1e-2)


@pytest.mark.parametrize("z", [np.eye(10) / 2, np.zeros((4, 10)), np.ones((4, 1)), np.eye(10) * 1e6], ids=str)
def test_one_that_is_never_or_always_sure_has_none(z: np.ndarray) -> None:
    assert temperature([z]) == 1.0


def test_at_any_temperature_small_differences_of_logits_count_about_as_much() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((400, 10))
    b = a + 1e-3 * rng.standard_normal(a.shape)
    cold, warm, hot = (divergences([[a]], [[b]], temperature=own).mean() for own in (1.0, 3.0, 9.0))
    assert cold == pytest.approx(divergence([[a]], [[b]]))
    assert warm == pytest.approx(cold, rel=0.3)
    assert hot == pytest.approx(1e-6 / 2 * 0.9, rel=0.1)  # half the variance of the logits' differences


def bernoulli(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_one_column_counts_as_a_probability_and_its_complement() -> None:
    p, q = np.array([[0.9], [0.2], [0.5]]), np.array([[0.6], [0.2], [0.7]])
    by_hand = bernoulli(p, q)[:, 0]
    probability, logit = (Output("y", kind, "y") for kind in ("probability", "logit"))
    np.testing.assert_allclose(divergences([[p]], [[q]], judged=[probability]), by_hand)
    zs = [np.log(x / (1 - x)) for x in (p, q)]
    np.testing.assert_allclose(divergences([[zs[0]]], [[zs[1]]], judged=[logit]), by_hand, rtol=1e-9)
    np.testing.assert_allclose(divergences([[p[:, 0]]], [[q[:, 0]]], judged=[probability]), by_hand)
    assert choices(probability, [p, q], [3, 3]).tolist() == [[1], [0], [0], [1], [0], [1]]
    assert np.isfinite(
        divergences([[np.array([[0.0], [1.0]])]], [[np.array([[1.0], [0.0]])]], judged=[probability])
    ).all()


def test_independent_probabilities_add_up() -> None:
    p, q = np.random.default_rng(0).uniform(0.1, 0.9, (2, 4, 6))
    found = divergences([[p]], [[q]], judged=[Output("y", "probability", "y")])
    np.testing.assert_allclose(found, bernoulli(p, q).sum(1))


def test_classes_of_pixels_are_compared_along_their_axis() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 4))
    pixels = [np.moveaxis(x, 1, -1).reshape(-1, 5) for x in (a, b)]
    by_hand = divergences([[pixels[0]]], [[pixels[1]]]).reshape(3, 16).mean(1)
    np.testing.assert_allclose(divergences([[a]], [[b]], judged=[Output("y", "scores", "y", axis=1)]), by_hand)
    last = [np.moveaxis(x, 1, -1) for x in (a, b)]
    np.testing.assert_allclose(
        divergences([last[:1]], [last[1:]], judged=[Output("y", "scores", "y", axis=-1)]), by_hand
    )


def test_images_on_another_axis_and_several_rows_an_image() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 7, 4, 5))  # steps, images, columns
    plain = [np.moveaxis(x, 1, 0) for x in (a, b)]
    kind = Output("y", "map", "y")
    by_hand = divergences([plain[:1]], [plain[1:]], judged=[kind], images=[4])
    np.testing.assert_allclose(divergences([[a]], [[b]], judged=[replace(kind, images=1)], images=[4]), by_hand)
    rows = [x.reshape(28, 5) for x in plain]
    np.testing.assert_allclose(divergences([rows[:1]], [rows[1:]], judged=[kind], images=[4]), by_hand)
    scores = replace(kind, kind="scores")
    found = divergences([rows[:1]], [rows[1:]], judged=[scores], images=[4])
    np.testing.assert_allclose(found, divergences([rows[:1]], [rows[1:]]).reshape(4, 7).mean(1))


def test_columns_of_boxes_count_alike_whatever_their_units() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 50, 4))
    units = np.array([1000.0, 1000.0, 1.0, 0.001])
    kind = Output("y", "boxes", "y")
    found = divergences([[a * units]], [[b * units]], judged=[kind])
    np.testing.assert_allclose(found, ((a - b) ** 2 / (2 * a.var((0, 1)))).mean((1, 2)), rtol=1e-2)
    turned = [np.moveaxis(x * units, 1, 2) for x in (a, b)]
    np.testing.assert_allclose(divergences([turned[:1]], [turned[1:]], judged=[kind]), found)
    constant = np.concatenate([a, np.full((6, 50, 1), 3.0)], 2)
    assert divergences([[constant]], [[constant * (1 + 1e-7)]], judged=[kind]).max() < 1e-6


def test_rows_whose_number_varies_are_not_compared() -> None:
    kind, fixed = Output("y", "regression", "y"), Output("z", "regression", "z")
    batches = [np.zeros((n, 4)) for n in (5, 7)]
    found = settled([kind, fixed], [batches, [np.arange(8.0).reshape(4, 2)] * 2], [4, 4])
    assert [o.kind for o in found] == ["other", "regression"]
    assert "varies" in found[0].what
    with pytest.raises(ModelError, match="`judge=y=other`"):
        divergences([batches[:1]], [batches[1:]], judged=[kind], images=[4])


def test_scores_of_one_column_are_a_logit() -> None:
    (found,) = settled([Output("y", "scores", "y")], [[np.arange(4.0)[:, None], np.ones((2, 1))]], [4, 2])
    assert found.kind == "logit"


@pytest.mark.parametrize(
    ("batches", "images", "what"),
    [
        ([np.tile(P[0], (4, 1))] * 2, 4, "the same for all images"),
        ([np.tile(np.array([1.0, -np.inf]), (4, 1))], 4, "the same for all images"),
        ([np.ones((1, 1))] * 3, 1, "the same for all images (at one image a run)"),
        ([np.array(3.0)], 4, "one value for all images of a run"),
        ([np.array(3.0), np.array(3.0)], 4, "one value for all images of a run"),
        ([np.array(3.0), np.array(4.0)], 4, "class scores"),
        ([P], 3, "class scores"),
        ([np.array([[1.0, -np.inf], [-np.inf, 1.0]])], 2, "class scores"),
        ([np.ones((1, 3))], 1, "class scores"),  # of one image nothing follows
    ],
)
def test_an_output_that_does_not_tell_images_apart_is_not_compared(
    batches: list[np.ndarray], images: int, what: str
) -> None:
    (found,) = settled([replace(LOGITS, kind="scores")], [batches], [images] * len(batches))
    assert (found.kind == "other") == (what != "class scores")
    assert what == "class scores" or found.what == what


def test_a_map_that_differs_within_an_image_alone_is_not_compared() -> None:
    ramp = np.tile(np.arange(9.0).reshape(1, 1, 3, 3), (4, 1, 1, 1))
    assert settled([Output("y", "map", "y")], [[ramp]], [4])[0].kind == "other"
    assert settled([Output("y", "map", "y")], [[ramp + np.arange(4)[:, None, None, None]]], [4])[0].kind == "map"


def test_scores_that_are_masked_out_cost_much_and_not_everything() -> None:
    a, b = np.array([[1.0, 0.0, -np.inf]]), np.array([[1.0, -np.inf, -np.inf]])
    assert kl_divergence([a], [a]) == 0
    assert 10 < kl_divergence([a], [b]) < 30
    assert largest_difference([a], [a]) == 0
    assert largest_difference([a], [b]) == np.inf
    of_maps = divergences([[a], [a]], [[a], [a]], judged=[LOGITS, Output("z", "map", "z")], images=[1])
    assert of_maps == [0]


def test_the_mean_answer_is_no_farther_than_no_answer() -> None:
    rng = np.random.default_rng(0)
    scores, values = Output("scores", "scores", "scores"), Output("values", "map", "map")
    x, y = 5 * rng.normal(size=(200, 10)), rng.normal(size=(200, 4)) + 3
    blank = np.log(np.exp(log_probabilities(x)).mean(0, keepdims=True)).repeat(200, 0)
    bound = of_no_answer([scores, values], [[x], [y]], [200])
    found = divergence([[x], [y]], [[blank], [np.full_like(y, y.mean())]], [scores, values], [200])
    assert 0.7 * bound < found <= bound
    assert bound == pytest.approx(math.log(10) + 0.5)
