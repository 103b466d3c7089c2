"""Trials of plans on the network itself: each is carried out on some calibration images, and judged on others.

The sum of sensitivities is of changes that are measured one by one, on a network that is not repaired. A trial measures
what all changes of a plan lose together, after the repair.

A trial has few images, and the KL divergence on so few is that of the one or two on which the network is unsure. At a
high temperature all images count alike: it is half the variance of the scores' errors over the classes then. That ranks
repaired plans of a ResNet-56 nearly as their divergence on 4,000 other images does (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from calib.data.calibration import CalibrationData, length
from calib.measure.divergence import Batches, check_comparable, divergences, settled, temperature
from calib.measure.sensitivity import BROKEN
from calib.measure.walk import Walk
from calib.runtime.batching import at_once, batch_size, declared_batch, whole_batches
from hmc_onnx.comparison.judging import matched
from hmc_onnx.execution.context import Context
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.work import Work
from hmc_onnx.rewriting.applying import repaired
from hmc_onnx.rewriting.gathering import walk_over
from passes.graph.model import Model
from passes.graph.outputs import Output

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
        stops: names of tensors of the original's normal form, in graph order, behind which alone it is to run.
    """

    def __init__(self, context: Context, rounded: bool = True, stops: Sequence[str] = ()) -> None:
        images = replace(context.data.draw(min(context.settings.samples, MOST)), labels=None)
        judged, fitted = images.split(_judged(len(images)), context.settings.seed)
        self._context = _on(context, fitted, rounded)
        feeds, fixed = judged.feeds, declared_batch(context.served, judged.feeds)
        size = fixed or batch_size(context.normal, feeds, at_once(feeds, len(judged)), context.runtime)
        chunks = whole_batches(judged, size, fixed)
        self._fitted, self._judged = (_Begun(self._context, own, stops) for own in (self._context.chunks, chunks))
        self._images = [length(chunk) for chunk in chunks]

    @cached_property
    def _original(self) -> tuple[list[Output], list[Batches]]:
        """The original's outputs, and the values of each, batch by batch."""
        model = self._context.normal
        values = _values(self._judged.at(None), model, model.compared)
        outputs = settled(model.compared, values, self._images)
        check_comparable(outputs)
        return outputs, values

    def losses(self, plan: Plan, heat: float = HOT, most: int | None = None, behind: str | None = None) -> np.ndarray:
        """What a plan's network, in float, loses on each image once it is repaired, in nats, (images,).

        Args:
            plan: the plan.
            heat: factor on the temperature at which sensitivities are measured.
            most: as of `repaired`.
            behind: one of the stops, before which the plan changes nothing; None: the whole network runs.

        Raises:
            PlanError: see `repaired`.
        """
        every, values = self._original
        model = repaired(self._context, plan, most, self._fitted.at(behind))
        outputs = matched(every, model)
        left = {o.name for o in outputs}
        reference = [own for o, own in zip(every, values, strict=True) if o.name in left]
        answers = _values(self._judged.at(behind), model, outputs)
        first = outputs[0]
        hot = heat * temperature(reference[0], first, self._images) if first.classes else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            nats = divergences(reference, answers, None, hot, outputs, self._images)
        return np.where(np.isfinite(nats), nats, BROKEN)


class _Begun:
    """A walk over the original that comes to one stop after the other, and begins again for one that it has passed.

    It stops at all of them, whichever are asked for, so that rounding does not depend on that.
    """

    def __init__(self, context: Context, images: Sequence[Mapping[str, np.ndarray]], stops: Sequence[str]) -> None:
        self._context, self.images, self._stops = context, images, stops
        self._walk, self._reached = walk_over(context, images), -1

    def at(self, stop: str | None) -> Walk:
        """The walk at a stop, to be forked and not to be advanced; None: at its start."""
        wanted = -1 if stop is None else self._stops.index(stop)
        if wanted < self._reached:
            self._walk, self._reached = walk_over(self._context, self.images), -1
        for tensor in self._stops[self._reached + 1 : wanted + 1]:
            self._walk.advance([tensor])
        self._reached = wanted
        return self._walk


def _values(begun: Walk, model: Model, outputs: Sequence[Output]) -> list[Batches]:
    """The values of outputs of a model, batch by batch, that goes on from a walk."""
    walk = begun.fork(model)
    walk.advance([output.tensor for output in outputs])
    return [list(walk.values(output.tensor)) for output in outputs]


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
