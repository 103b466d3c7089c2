"""The search for the plan that loses least on the network itself, among plans whose sums are to be doubted.

The sum of sensitivities is of changes that are measured one by one, on a network that is not repaired. It misjudges
most what is large. The layers behind a removed residual branch make up for a part of it, which differs, and for several
branches together by less. Many groups that each lose some of their channels lose far more together than their sum, and
a repair makes up for little of it. So two things are left open, which trials decide: the number of branches that are
removed, and a factor on the sensitivities of removed channels. The search goes from the plan by the sum to better
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from hmc_onnx.execution.context import Context
from hmc_onnx.planning.accepted_time import excess, known
from hmc_onnx.planning.trial import Trial, loses_less, most_trials
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import Plan
from passes.core.errors import HmcError

__all__ = ["PRUNING", "Question", "least_in_trials", "same_changes"]

# Factors on the sensitivities of removed channels: as they are measured, or so high that few are removed.
PRUNING = (1.0, 16.0)
# A plan is tried only if its sum is at most so many times that of the best.
PLAUSIBLE = 5.0


class Question(NamedTuple):
    """What the sum does not decide: the number of branches to remove, and the factor on removed channels."""

    branches: int
    pruning: float = 1.0

    def neighbours(self) -> Iterator[Question]:
        """One branch more or less, and then the other factors, with as many branches, one more, and one less."""
        for pruning in sorted(PRUNING, key=lambda factor: factor != self.pruning):
            for branches in (self.branches, self.branches + 1, self.branches - 1):
                if branches >= 0:
                    yield Question(branches, pruning)


Answer = Callable[[Question], Plan]


def least_in_trials(context: Context, plan: Plan, target: Target, hoped: Answer, made: Answer) -> Plan:
    """The plan that loses least in trials, of one plan and of those that a search from it comes to.

    Args:
        context: the run.
        plan: the plan by the sum.
        target: that all plans are to meet.
        hoped: makes a plan whose time is not measured.
        made: makes a plan, and measures its time where there is a bound on it.
    """
    trials = _Trials(context, plan, target, hoped, made)
    while any(trials.better(question) for question in trials.question.neighbours()):
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
        question: to which it is the answer.
        most: upper bound on the number of trials.
        count: number of trials so far.
    """

    def __init__(self, context: Context, plan: Plan, target: Target, hoped: Answer, made: Answer) -> None:
        self.best, self.question = plan, Question(plan.removed_branches)
        self._context, self._target, self._hoped, self._made = context, target, hoped, made
        self._trial: Trial | None = None
        self._least = np.zeros(0)
        self._asked = {self.question}
        self._plans = [plan]
        self.most, self.count = most_trials(context), 0

    def better(self, question: Question) -> bool:
        """Try the plan that answers a question; whether it is the best now.

        Its time, which takes longer to measure than a trial, is measured where it loses less; it may become another
        plan by that, which is tried, too. A plan is not tried again, nor where it is sure to lose more. It is not taken
        where its time is not known or misses the target by more. What goes wrong leaves the best as it is.
        """
        if question in self._asked or self.count == self.most:
            return False
        self._asked.add(question)
        with suppress(HmcError):
            plan = self._hoped(question)
            losses = None if plan.sensitivity > PLAUSIBLE * self.best.sensitivity else self._losses_if_less(plan)
            if losses is None:
                return False
            timed = self._made(question)
            if not known(timed) or excess(timed, self._target) > excess(self.best, self._target):
                return False
            if not same_changes(timed, plan):
                losses = self._losses_if_less(timed)
            if losses is not None:
                self.best, self._least, self.question = timed, losses, question
                return True
        return False

    def _losses_if_less(self, plan: Plan) -> np.ndarray | None:
        """What a plan loses on each image, if that is less than the best loses.

        None, too, for a plan that was tried before, and where there have been as many trials as there may be.
        """
        if self.count == self.most or any(same_changes(plan, tried) for tried in self._plans):
            return None
        self._plans.append(plan)
        self._context.progress("trials", self.count, self.most)
        self._trial = self._trial or Trial(self._context)
        if not self._least.size:
            self._least = self._trial.losses(self.best)
        self.count += 1
        losses = self._trial.losses(plan)
        return losses if loses_less(losses, self._least) else None
