"""Trials of plans on the network itself: each is carried out on some calibration images, and judged on others.

The sum of sensitivities is of changes that are measured one by one, on a network that is not repaired. A trial measures
what all changes of a plan lose together, after the repair.
"""

from __future__ import annotations

from dataclasses import replace

from calib.measure.divergence import divergences, temperature
from hmc_onnx.comparison.answers import Answers
from hmc_onnx.comparison.judging import Judged
from hmc_onnx.execution.context import Context
from hmc_onnx.records.plan import Plan
from hmc_onnx.rewriting.applying import apply

__all__ = ["Trial", "enough_for_trials"]

# Images that a trial is judged on, and those that its layers are repaired on: at least, and at most.
JUDGED, LEAST_FITTED, MOST_FITTED = 64, 64, 256


def enough_for_trials(context: Context) -> bool:
    """Whether a run has enough images to carry plans out on some and judge them on others."""
    return min(len(context.data), context.settings.samples) >= JUDGED + LEAST_FITTED


class Trial:
    """Carries plans out for a trial.

    Args:
        context: a run with `enough_for_trials`.
    """

    def __init__(self, context: Context) -> None:
        images = replace(context.data.draw(context.settings.samples), labels=None)
        judged, rest = images.part(JUDGED)
        self._data, self._fitted = judged, context.on(rest.head(MOST_FITTED))
        self._chunks = context.on(judged).chunks
        self._original = Judged(context.served, context.runtime, context.settings.judge)

    def loss(self, plan: Plan) -> float:
        """What a plan's network, in float, loses once it is repaired: the divergence from the original, in nats.

        It is measured at the temperature at which sensitivities are measured.

        Raises:
            PlanError: see `apply`.
        """
        context = self._fitted
        judged = Judged(apply(context, plan), context.runtime, context.settings.judge, self._original)
        found = Answers.of(self._original, judged, self._chunks, self._data)
        first = found.outputs[0]
        warmth = temperature(found.reference[0], first, found.images) if first.classes else 1.0
        nats = divergences(found.reference, found.answers, None, warmth, found.outputs, found.images)
        return float(nats.mean())
