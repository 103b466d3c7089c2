"""Trials of plans on the network itself: each is carried out on some calibration images, and judged on others.

The sum of sensitivities is of changes that are measured one by one, on a network that is not repaired. A trial measures
what all changes of a plan lose together, after the repair.

A trial has few images, and the KL divergence on so few is that of the one or two on which the network is unsure. At a
high temperature all images count alike: it is half the variance of the scores' errors over the classes then. That ranks
repaired plans of a ResNet-56 nearly as their divergence on 4,000 other images does (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from calib.data.calibration import CalibrationData
from calib.measure.divergence import divergences, temperature
from calib.measure.sensitivity import BROKEN
from calib.runtime.batching import at_once, batch_size, declared_batch, whole_batches
from hmc_onnx.comparison.answers import Answers
from hmc_onnx.comparison.judging import Judged
from hmc_onnx.execution.context import Context
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.work import Work
from hmc_onnx.rewriting.applying import apply

__all__ = ["MOST_TRIALS", "Trial", "enough_images", "loses_less", "most_trials"]

# Images of a trial, at least and at most. One in JUDGED is judged on, and the layers are repaired on the others, but on
# no more than FITTED: repairs take time, and judging on more takes little.
LEAST, MOST, JUDGED, FITTED = 128, 448, 4, 192
# Factor on the temperature at which sensitivities are measured.
HOT = 8.0
# Upper bound on the trials of one target, and on the MACs of all their networks for one image, so that they take about
# a minute on two cores. (Two repairs of a ResNet-50, which has 4.1e9, would take a minute and a half.)
MOST_TRIALS, TRIAL_MACS = 8, 2e9


def enough_images(context: Context) -> bool:
    """Whether a run has enough images to repair on some of them and judge on others."""
    images = min(len(context.data), context.settings.samples, MOST)
    judged, batch = _judged(images), declared_batch(context.served, context.data.feeds) or 1
    return images >= LEAST and min(judged, images - judged) >= batch


def most_trials(context: Context) -> int:
    """How many plans of a run may be tried: fewer of a large network, and none where there are too few images."""
    return min(MOST_TRIALS, int(TRIAL_MACS / max(context.cost.macs, 1))) if enough_images(context) else 0


def _judged(images: int) -> int:
    """How many of the images of a trial are judged on."""
    return max(images // JUDGED, images - FITTED)


class Trial:
    """Carries plans out for a trial.

    Args:
        context: a run with enough images (`enough_images`).
        rounded: whether the weights are rounded as they are repaired, where the network is served in INT8.
    """

    def __init__(self, context: Context, rounded: bool = True) -> None:
        images = replace(context.data.draw(min(context.settings.samples, MOST)), labels=None)
        self._data, fitted = images.split(_judged(len(images)), context.settings.seed)
        self._fitted = _on(context, fitted, rounded)
        feeds, fixed = self._data.feeds, declared_batch(context.served, self._data.feeds)
        size = fixed or batch_size(context.normal, feeds, at_once(feeds, len(self._data)), context.runtime)
        self._chunks = whole_batches(self._data, size, fixed)
        self._original = Judged(context.served, context.runtime, context.settings.judge)

    @cached_property
    def _reference(self) -> list[list[np.ndarray]]:
        return self._original.batches(self._chunks)

    def losses(self, plan: Plan, heat: float = HOT, most: int | None = None) -> np.ndarray:
        """What a plan's network, in float, loses on each image once it is repaired, in nats, (images,).

        Args:
            plan: the plan.
            heat: factor on the temperature at which sensitivities are measured.
            most: as for `apply`.

        Raises:
            PlanError: see `apply`.
        """
        context = self._fitted
        judged = Judged(apply(context, plan, most), context.runtime, context.settings.judge, self._original)
        found = Answers.of(self._original, judged, self._chunks, self._data, self._reference)
        first = found.outputs[0]
        hot = heat * temperature(found.reference[0], first, found.images) if first.classes else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            nats = divergences(found.reference, found.answers, None, hot, found.outputs, found.images)
        return np.where(np.isfinite(nats), nats, BROKEN)


def _on(context: Context, images: CalibrationData, rounded: bool) -> Context:
    """A run of the same model on other images, which keeps nothing and reports nothing."""
    settings = context.settings if rounded else context.settings.model_copy(update={"precision": "fp32"})
    other = Context(context.served, images, settings, Work(memory=context.work.memory))
    vars(other).update(normal=context.normal, digest=context.digest, large=context.large)  # which both have
    return other


def loses_less(losses: np.ndarray, than: np.ndarray) -> bool:
    """Whether losses on the same images, (images,), are less on average, by more than their difference's error."""
    less = than - losses
    return bool(less.mean() > less.std() / np.sqrt(len(less)))
