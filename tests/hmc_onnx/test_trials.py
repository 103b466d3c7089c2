"""The search by trials: which plan it comes to, and which it tries, on plans whose sums and losses are given."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from hmc_onnx.planning import trials
from hmc_onnx.planning.trials import least_in_trials
from hmc_onnx.records.goal import Target
from passes.core.errors import ModelError, SettingsError

TARGET = Target(latency=0.5)


class Planned(NamedTuple):
    """A plan: the sum of its sensitivities, what it loses in a trial, and its time.

    When its time is measured it becomes another plan, which loses `then`, if that is given.
    """

    sum: float
    loss: float
    share: float = 0.5
    uncertainty: float = 0.001
    then: float | None = None


class Search:
    """A search, with the plans of all numbers of branches that have any; what it has tried, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Mapping[int, Planned], most: int = 20) -> None:
        self.answers, self.tried = answers, list[int]()
        search = self

        class Trial:
            def __init__(self, context: object) -> None: ...

            def losses(self, plan: Any) -> np.ndarray:
                search.tried.append(plan.removed_branches)
                if np.isnan(plan.loss):
                    raise ModelError("it does not run")
                return np.array([plan.loss])

        monkeypatch.setattr(trials, "Trial", Trial)
        monkeypatch.setattr(trials, "most_trials", lambda _: most)

    def plan(self, branches: int, timed: bool = False) -> Any:
        """The plan that removes so many branches."""
        if branches not in self.answers:
            raise SettingsError("out of reach")
        answer = self.answers[branches]
        changed = timed and answer.then is not None
        return SimpleNamespace(
            removed_branches=branches,
            sensitivity=answer.sum,
            latency=SimpleNamespace(measured=answer.share, uncertainty=answer.uncertainty) if timed else None,
            layers=(branches, changed),
            groups={},
            loss=answer.then if changed else answer.loss,
        )

    def run(self, start: int) -> int:
        """The number of branches of the plan that is found."""
        context: Any = SimpleNamespace(progress=lambda *_: None)
        found: Any = least_in_trials(
            context, self.plan(start, timed=True), TARGET, self.plan, lambda branches: self.plan(branches, timed=True)
        )
        return found.removed_branches


@pytest.mark.parametrize("best", [0, 1, 2, 4])
def test_as_many_branches_are_removed_as_lose_least(monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    search = Search(monkeypatch, {n: Planned(1.0, abs(n - best)) for n in range(7)})
    assert search.run(2) == best
    assert len(search.tried) == len(set(search.tried)) and search.tried[0] == 2


def test_the_search_goes_on_from_what_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {0: 0, 1: 5, 2: 4, 3: 3, 4: 2, 5: 6}
    search = Search(monkeypatch, {n: Planned(1.0, loss) for n, loss in losses.items()})
    assert search.run(2) == 4  # not 0, which is behind what is worse
    assert search.tried == [2, 3, 4, 5]


def test_a_plan_of_too_large_a_sum_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    better = Planned(trials.PLAUSIBLE * 1.01, 0.1)
    search = Search(monkeypatch, {0: Planned(1.0, 1.0), 1: better})
    assert search.run(0) == 0
    assert not search.tried


@pytest.mark.parametrize(
    "better",
    [
        Planned(1.0, 0.1, share=0.51),  # it is too slow
        Planned(1.0, 0.1, uncertainty=0.9),  # its time is not known
        Planned(1.0, 0.1, then=1.0),  # within the time it loses as much as the first
    ],
)
def test_what_loses_less_is_not_taken_where_it_is_not_within_the_time(
    monkeypatch: pytest.MonkeyPatch, better: Planned
) -> None:
    search = Search(monkeypatch, {0: Planned(1.0, 1.0), 1: better})
    assert search.run(0) == 0


def test_the_time_of_a_plan_that_loses_more_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Planned(1.0, 2.0, then=0.1)
    assert Search(monkeypatch, {0: Planned(1.0, 1.0), 1: worse}).run(0) == 0


def test_a_plan_that_its_time_makes_another_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, {0: Planned(1.0, 1.0), 1: Planned(1.0, 0.5, then=0.6)})
    assert search.run(0) == 1
    assert search.tried == [0, 1, 1]


def test_where_the_first_plan_is_too_slow_another_may_be_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, {0: Planned(1.0, 1.0, 0.52), 1: Planned(1.0, 0.1, 0.515)})
    assert search.run(0) == 1


def test_a_trial_that_fails_leaves_the_best_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, {0: Planned(1.0, 1.0), 1: Planned(1.0, float("nan"))})
    assert search.run(0) == 0
    assert search.tried == [0, 1]


def test_there_are_no_more_trials_than_the_network_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {n: Planned(1.0, 10.0 - n) for n in range(10)}
    assert Search(monkeypatch, answers, most=3).run(0) == 3
    none = Search(monkeypatch, answers, most=0)
    assert none.run(0) == 0 and not none.tried


def test_a_plan_that_its_time_makes_another_is_not_taken_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {0: Planned(1.0, 1.0), 1: Planned(1.0, 0.5, then=0.6)}
    search = Search(monkeypatch, answers, most=1)
    assert search.run(0) == 0
    assert search.tried == [0, 1]
