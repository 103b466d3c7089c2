"""The search by trials: which plan it comes to, and which it tries, on plans whose sums and losses are given."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from hmc_onnx.planning import trials
from hmc_onnx.planning.trials import Question, least_in_trials
from hmc_onnx.records.goal import Target
from passes.core.errors import ModelError, SettingsError

TARGET = Target(latency=0.5)
FEW = 16.0  # the factor by which few channels are removed


class Answer(NamedTuple):
    """The plan of a question: the sum of its sensitivities, what it loses in a trial, and its time.

    Plans with the same word (`same`) are one. When its time is measured it becomes another plan, which loses `then`, if
    that is given.
    """

    sum: float
    loss: float
    share: float = 0.5
    uncertainty: float = 0.001
    same: str = ""
    then: float | None = None


class Search:
    """A search from one question, with the plans of all questions that have any; what it has tried, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Mapping[Question, Answer], most: int = 20) -> None:
        self.answers, self.tried = answers, list[Question]()
        search = self

        class Trial:
            def __init__(self, context: object) -> None: ...

            def losses(self, plan: Any) -> np.ndarray:
                search.tried.append(plan.question)
                if np.isnan(plan.loss):
                    raise ModelError("it does not run")
                return np.array([plan.loss])

        monkeypatch.setattr(trials, "Trial", Trial)
        monkeypatch.setattr(trials, "most_trials", lambda _: most)

    def plan(self, question: Question, timed: bool = False) -> Any:
        """The plan that answers a question."""
        if question not in self.answers:
            raise SettingsError("out of reach")
        answer = self.answers[question]
        changed = timed and answer.then is not None
        return SimpleNamespace(
            question=question,
            removed_branches=question.branches,
            sensitivity=answer.sum,
            latency=SimpleNamespace(measured=answer.share, uncertainty=answer.uncertainty) if timed else None,
            layers=(answer.same or question, changed),
            groups={},
            loss=answer.then if changed else answer.loss,
        )

    def run(self, start: Question) -> Question:
        """The question whose plan is found."""
        context: Any = SimpleNamespace(progress=lambda *_: None)
        found: Any = least_in_trials(
            context, self.plan(start, timed=True), TARGET, self.plan, lambda question: self.plan(question, timed=True)
        )
        return found.question


@pytest.mark.parametrize("best", [0, 1, 2, 4])
def test_as_many_branches_are_removed_as_lose_least(monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    search = Search(monkeypatch, {Question(n): Answer(1.0, abs(n - best)) for n in range(7)})
    assert search.run(Question(2)) == Question(best)
    assert len(search.tried) == len(set(search.tried)) and search.tried[0] == Question(2)


def test_the_sensitivities_of_removed_channels_are_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many branches the other factor changes nothing; with one less it does."""
    few = {Question(2, FEW): Answer(1.0, 3.0, same="as it is"), Question(1, FEW): Answer(3.0, 1.0)}
    some = {Question(2): Answer(1.0, 3.0, same="as it is"), Question(1): Answer(0.9, 7.0)}
    search = Search(monkeypatch, some | few)
    assert search.run(Question(2)) == Question(1, FEW)
    assert search.tried == [Question(2), Question(1), Question(1, FEW)]


def test_the_search_goes_on_from_what_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {(2, 1.0): 5, (3, 1.0): 4, (4, 1.0): 6, (3, FEW): 3, (2, FEW): 2, (1, FEW): 1, (0, FEW): 2}
    search = Search(monkeypatch, {Question(*at): Answer(1.0, loss) for at, loss in losses.items()})
    assert search.run(Question(2)) == Question(1, FEW)


def test_a_plan_of_too_large_a_sum_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    better = Answer(trials.PLAUSIBLE * 1.01, 0.1)
    search = Search(monkeypatch, {Question(0): Answer(1.0, 1.0), Question(1): better})
    assert search.run(Question(0)) == Question(0)
    assert not search.tried


@pytest.mark.parametrize(
    "better",
    [
        Answer(1.0, 0.1, share=0.51),  # it is too slow
        Answer(1.0, 0.1, uncertainty=0.9),  # its time is not known
        Answer(1.0, 0.1, then=1.0),  # within the time it loses as much as the first
    ],
)
def test_what_loses_less_is_not_taken_where_it_is_not_within_the_time(
    monkeypatch: pytest.MonkeyPatch, better: Answer
) -> None:
    search = Search(monkeypatch, {Question(0): Answer(1.0, 1.0), Question(1): better})
    assert search.run(Question(0)) == Question(0)


def test_the_time_of_a_plan_that_loses_more_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Answer(1.0, 2.0, then=0.1)
    assert Search(monkeypatch, {Question(0): Answer(1.0, 1.0), Question(1): worse}).run(Question(0)) == Question(0)


def test_a_plan_that_its_time_makes_another_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, {Question(0): Answer(1.0, 1.0), Question(1): Answer(1.0, 0.5, then=0.6)})
    assert search.run(Question(0)) == Question(1)
    assert search.tried == [Question(0), Question(1), Question(1)]


def test_where_the_first_plan_is_too_slow_another_may_be_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, {Question(0): Answer(1.0, 1.0, 0.52), Question(1): Answer(1.0, 0.1, 0.515)})
    assert search.run(Question(0)) == Question(1)


def test_a_trial_that_fails_leaves_the_best_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, {Question(0): Answer(1.0, 1.0), Question(1): Answer(1.0, float("nan"))})
    assert search.run(Question(0)) == Question(0)
    assert search.tried == [Question(0), Question(1)]


def test_there_are_no_more_trials_than_the_network_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {Question(n): Answer(1.0, 10.0 - n) for n in range(10)}
    assert Search(monkeypatch, answers, most=3).run(Question(0)) == Question(3)
    none = Search(monkeypatch, answers, most=0)
    assert none.run(Question(0)) == Question(0) and not none.tried


def test_a_plan_that_its_time_makes_another_is_not_taken_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {Question(0): Answer(1.0, 1.0), Question(1): Answer(1.0, 0.5, then=0.6)}
    search = Search(monkeypatch, answers, most=1)
    assert search.run(Question(0)) == Question(0)
    assert search.tried == [Question(0), Question(1)]
