"""Plans for a share of the time: fitted to measured networks, and tried on the network itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from planned import SETTINGS, calibration
from zoo import images, run

import hmc_onnx
from calib.measure.latency import Measurement, Timings
from hmc_onnx.execution.context import Context
from hmc_onnx.planning import planner, trials
from hmc_onnx.planning.accepted_time import decided
from hmc_onnx.planning.program import Program
from hmc_onnx.planning.trial import MOST_TRIALS
from hmc_onnx.records.goal import Strategy, Target
from hmc_onnx.records.work import Work
from passes.core.errors import HmcWarning, SettingsError


def test_a_correction_makes_the_bound_tighter(profile: hmc_onnx.Profile) -> None:
    plan = Program(profile).solve(Target(latency=0.9), correction=0.8)
    assert plan.latency is not None and plan.latency.expected <= 0.72
    with pytest.raises(SettingsError, match=r"latency=0\.001 is below .* reach on this model, latency=0\."):
        hmc_onnx.solve(profile, Target(latency=0.001))


def clocked(monkeypatch: pytest.MonkeyPatch, ratio: Callable[[hmc_onnx.Plan], Measurement]) -> list[hmc_onnx.Plan]:
    """The plans that are made from now on, on a clock by which the network of a plan takes a share of the time."""
    made: list[hmc_onnx.Plan] = []
    solve = Program.solve

    def counted(*arguments: object, **named: object) -> hmc_onnx.Plan:
        made.append(solve(*arguments, **named))  # type: ignore[arg-type]
        return made[-1]

    class Clock:
        def __init__(self, *_: object) -> None: ...

        def latency(self, model: int) -> Measurement:
            return Measurement(1.0, 0.0)

        def ratio(self, model: int) -> Measurement:
            return ratio(made[-1])

    monkeypatch.setattr(Program, "solve", counted)
    monkeypatch.setattr(planner, "calm", Clock)
    monkeypatch.setattr(planner, "surer", lambda timings, *_: timings)
    return made


def expected(plan: hmc_onnx.Plan) -> float:
    assert plan.latency is not None
    return plan.latency.expected


@pytest.mark.parametrize("factor", [1.3, 0.8])
def test_a_plan_is_made_again_until_its_network_takes_the_time(
    original: onnx.ModelProto, profile: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """A clock by which whole networks take a factor more than the sum of their parts."""
    made = clocked(monkeypatch, lambda plan: Measurement(expected(plan) * factor, 0.001))
    context = Context(original, calibration(), SETTINGS)
    plan = planner.Planner(context, profile).plan(Target(latency=0.8))
    assert plan.latency is not None and plan.latency.measured is not None
    assert plan.latency.measured == plan.latency.expected * factor
    assert plan.latency.measured <= 0.8 * 1.02  # plans come in steps
    assert len(made) > 1


def test_the_plan_of_a_narrower_strategy_is_taken_where_only_chains_take_longer_than_their_sum(
    original: onnx.ModelProto, profile: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(monkeypatch, lambda plan: Measurement(expected(plan) * (1.5 if chains(plan) else 1.0), 0.001))

    def planned(strategy: Strategy) -> hmc_onnx.Plan:
        return planner.Planner(Context(original, calibration(), SETTINGS), profile, strategy).plan(Target(latency=0.85))

    found, pruned = planned("hmc"), planned("prune")
    assert found.sensitivity <= pruned.sensitivity and found.strategy == "hmc"
    assert found.latency is not None and found.latency.measured is not None
    assert found.latency.measured <= 0.85 * 1.005
    monkeypatch.setattr(planner, "NARROWER", ())
    assert planned("hmc").sensitivity > pruned.sensitivity


@pytest.mark.parametrize(
    ("share", "told"), [(0.36, True), (0.488, False), (0.492, False), (0.496, True), (0.502, False), (0.51, True)]
)
def test_a_network_is_timed_until_it_is_sure_whether_its_time_is_accepted(
    monkeypatch: pytest.MonkeyPatch, share: float, told: bool
) -> None:
    """For a target of 0.5, times from 0.49 to 0.5025 are accepted."""
    monkeypatch.setattr(Timings, "ratio", lambda *_: Measurement(share, 0.003))
    assert decided(Timings(np.ones((9, 2))), 0.5) == told


def with_trials(monkeypatch: pytest.MonkeyPatch, loss: Callable[[hmc_onnx.Plan], float]) -> None:
    """Plans lose `loss` in trials from now on, and are tried whatever the sum of their sensitivities."""

    class Trial:
        def __init__(self, context: Context) -> None: ...

        def losses(self, plan: hmc_onnx.Plan) -> np.ndarray:
            return np.array([loss(plan)])

    monkeypatch.setattr(trials, "Trial", Trial)
    monkeypatch.setattr(trials, "most_trials", lambda _: MOST_TRIALS)
    monkeypatch.setattr(trials, "PLAUSIBLE", float("inf"))


def test_the_plan_that_loses_least_in_trials_is_taken(
    original: onnx.ModelProto, profile: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(monkeypatch, lambda plan: Measurement(expected(plan), 0.001))
    target = Target(latency=0.8)
    by_sum = planner.Planner(Context(original, calibration(), SETTINGS), profile).plan(target)
    best = by_sum.removed_branches + 1
    with_trials(monkeypatch, lambda plan: abs(plan.removed_branches - best))
    found = planner.Planner(Context(original, calibration(), SETTINGS), profile).plan(target)
    assert found.removed_branches == best and found.strategy == "hmc"
    assert expected(found) <= max(expected(by_sum), 0.8 * 1.005)  # plans come in steps


def test_fewer_plans_are_made_for_a_trial_than_for_a_target(
    original: onnx.ModelProto, profile: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: Counter[int] = Counter()  # by the number of removed branches

    def never_near(plan: hmc_onnx.Plan) -> Measurement:
        timed[plan.removed_branches] += 1
        return Measurement(0.3 - 0.01 * plan.removed_branches, 0.001)  # the less, the worse

    monkeypatch.setattr(planner, "NARROWER", ())
    made = clocked(monkeypatch, never_near)
    with_trials(monkeypatch, lambda plan: -float(plan.removed_branches))  # the more, the better
    planner.Planner(Context(original, calibration(), SETTINGS), profile).plan(Target(latency=0.8))
    first = made[0].removed_branches
    tried = {branches: count for branches, count in timed.items() if branches != first}
    assert timed[first] == planner.MOST_PLANS
    assert tried and set(tried.values()) == {planner.MOST_TRIED}


def chains(plan: hmc_onnx.Plan) -> bool:
    return any(layer.rank for layer in plan.layers.values())


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([(5.0, 0.9), (1.0, 0.1)], 1.4),
        ([(5.0, 0.9), (1.0, 0.2)], 0.9),
        ([(1.0, 0.1), (1.8, 0.3)], 1.32),
        ([(1.8, 0.3), (1.0, 0.1), (1.3, 0.17), (1.5, 0.2)], 1.3 + 0.2 / 3),
        ([(1.0, 0.2), (1.1, 0.15)], 1.32),  # a time that was disturbed
    ],
)
def test_the_next_bound_is_between_those_of_the_nearest_times(points: list[tuple[float, float]], found: float) -> None:
    assert planner.next_correction(points, 0.18) == pytest.approx(found)


def test_a_target_is_come_to_where_a_part_of_the_time_goes_faster_than_the_layers_alone(
    monkeypatch: pytest.MonkeyPatch, profile: hmc_onnx.Profile, original: onnx.ModelProto
) -> None:
    plans = clocked(monkeypatch, lambda plan: Measurement(1 - 1.6 * (1 - expected(plan)), 0.001))
    context = Context(original, calibration(), SETTINGS)
    plan = planner.Planner(context, profile).plan(Target(latency=0.6))
    assert plan.latency is not None and plan.latency.measured is not None
    assert 0.54 < plan.latency.measured <= 0.6 * 1.005  # plans come in steps; the first is measured to take 0.35
    assert 1 < len([p for p in plans if p.strategy == "hmc"]) <= planner.MOST_PLANS


@pytest.mark.parametrize(
    ("share", "uncertainty", "plans"),
    [
        (0.3, 0.3, 1),  # so noisy that nothing follows from it
        (0.3, 0.001, planner.MOST_PLANS),  # the same for all plans
        (1.2, 0.3, 1),
    ],
)
def test_a_wrong_measurement_does_not_give_up_the_plan(
    original: onnx.ModelProto,
    profile: hmc_onnx.Profile,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    uncertainty: float,
    plans: int,
) -> None:
    made = clocked(monkeypatch, lambda _: Measurement(share, uncertainty))
    plan = planner.Planner(Context(original, calibration(), SETTINGS), profile).plan(Target(latency=0.8))
    assert plan.changes and len([p for p in made if p.strategy == "hmc"]) == plans
    assert plan.layers == made[0].layers and plan.groups == made[0].groups
    assert plan.latency is not None and plan.latency.uncertainty == uncertainty


def test_a_plan_of_unknown_time_is_warned_of_and_made_anew_where_the_run_goes_on(
    original: onnx.ModelProto, profile: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def planned() -> hmc_onnx.Plan:
        context = Context(original, calibration(), SETTINGS, Work(work_dir=tmp_path / "work"))
        return planner.Planner(context, profile, "prune").plan(Target(latency=0.8))

    clocked(monkeypatch, lambda plan: Measurement(0.3, 0.3))
    with pytest.warns(HmcWarning, match="too busy to time the planned network"):
        planned()
    made = clocked(monkeypatch, lambda plan: Measurement(expected(plan), 0.001))
    plan = planned()
    assert plan.latency is not None and plan.latency.uncertainty == 0.001
    made.clear()
    assert planned() == plan and not made  # a plan of known time is kept


def test_a_model_compressed_for_the_time_runs_and_says_what_it_takes(original: onnx.ModelProto) -> None:
    result = hmc_onnx.compress(original, calibration(), "latency=0.7", settings=SETTINGS)
    assert result.plan.latency is not None
    assert result.plan.latency.measured is not None and result.plan.latency.uncertainty is not None
    assert 4 in {t.batch for t in result.report.timings}
    assert np.isfinite(run(result.model, images(3, 8))[0]).all()
    assert result.report.b.macs < result.report.a.macs
