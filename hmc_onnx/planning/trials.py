"""The search for the number of residual branches to remove that loses least on the network itself.

The sum of sensitivities is of changes that are measured one by one. What removed branches lose together is estimated
from a few of them, and in a large network they are measured with nothing repaired, which says little. So their number
is left open, and trials decide it. The search goes from the plan by the sum to one branch more or less, and on from
what is better.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from hmc_onnx.execution.context import Context
from hmc_onnx.planning.accepted_time import excess, known
from hmc_onnx.planning.trial import Trial, loses_less, most_trials
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import Plan
from passes.core.errors import HmcError

__all__ = ["least_in_trials", "same_changes"]

# A plan is tried only if its sum is at most so many times that of the best.
PLAUSIBLE = 5.0

Answer = Callable[[int], Plan]  # makes the plan that removes so many branches


def least_in_trials(context: Context, plan: Plan, target: Target, hoped: Answer, made: Answer) -> Plan:
    """The plan that loses least in trials, of one plan and of those that a search from it comes to.

    Args:
        context: the run.
        plan: the plan by the sum.
        target: that all plans are to meet.
        hoped: makes a plan whose time is not measured, given the number of branches.
        made: makes one, and measures its time where there is a bound on it.
    """
    trials = _Trials(context, plan, target, hoped, made)
    while any(trials.better(trials.branches + step) for step in (1, -1)):
        pass
    if trials.count:
        context.progress("trials", trials.most, trials.most)
    return trials.best


def same_changes(plan: Plan, other: Plan) -> bool:
    """Whether two plans do the same to every layer and group, at the same cost."""
    return plan.layers == other.layers and plan.groups == other.groups


class _Trials:
    """Tries plans one after the other; the arguments are those of `least_in_trials`.

    Attributes:
        best: the plan that loses least, of those tried.
        branches: the number that it was asked to remove.
        most: upper bound on the number of trials.
        count: number of trials so far.
    """

    def __init__(self, context: Context, plan: Plan, target: Target, hoped: Answer, made: Answer) -> None:
        self.best, self.branches = plan, plan.removed_branches
        self._context, self._target, self._hoped, self._made = context, target, hoped, made
        self._trial: Trial | None = None
        self._least = np.zeros(0)
        self._asked = {self.branches}
        self.most, self.count = most_trials(context), 0

    def better(self, branches: int) -> bool:
        """Try the plan that removes so many branches; whether it is the best now.

        Its time, which takes longer to measure than a trial, is measured where it loses less; it may become another
        plan by that, which is tried, too. A plan is not tried where it is sure to lose more, and not taken where its
        time is not known or misses the target by more. What goes wrong leaves the best as it is.
        """
        if branches < 0 or branches in self._asked or self.count == self.most:
            return False
        self._asked.add(branches)
        with suppress(HmcError):
            plan = self._hoped(branches)
            losses = None if plan.sensitivity > PLAUSIBLE * self.best.sensitivity else self._losses_if_less(plan)
            if losses is None:
                return False
            timed = self._made(branches)
            if not known(timed) or excess(timed, self._target) > excess(self.best, self._target):
                return False
            if not same_changes(timed, plan):
                losses = self._losses_if_less(timed)
            if losses is not None:
                self.best, self._least, self.branches = timed, losses, branches
                return True
        return False

    def _losses_if_less(self, plan: Plan) -> np.ndarray | None:
        """What a plan loses on each image, if that is less than the best loses, and if it may still be tried."""
        if self.count == self.most:
            return None
        self._context.progress("trials", self.count, self.most)
        self._trial = self._trial or Trial(self._context)
        if not self._least.size:
            self._least = self._trial.losses(self.best)
        self.count += 1
        losses = self._trial.losses(plan)
        return losses if loses_less(losses, self._least) else None
