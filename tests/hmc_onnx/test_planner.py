"""Plans for a share of the time: fitted to measured networks, for this machine or another, or searched for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import images, resnet, run

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.latency import Measurement, Timings
from calib.measure.latency_table import LatencyTable, ProbeTime, cached_table, read_table, this_machine
from calib.runtime.batching import serving_batch, serving_feeds
from calib.runtime.sessions import Runtime
from hmc_onnx.execution.context import Context
from hmc_onnx.planning import accuracy_search as searching
from hmc_onnx.planning import planner, trials
from hmc_onnx.planning.accepted_time import decided
from hmc_onnx.planning.program import Program
from hmc_onnx.planning.trial import MOST_TRIALS
from hmc_onnx.profiling.candidate_times import Clock
from hmc_onnx.profiling.whole_table import measure_table
from hmc_onnx.records.goal import Strategy, Target
from hmc_onnx.records.work import Work
from passes.core.errors import HmcWarning, SettingsError
from passes.core.progress import Progress, silent
from passes.probe import Probe

pytestmark = pytest.mark.usefixtures("few_iterations")

SETTINGS = hmc_onnx.Settings(
    samples=32, kl_samples=16, positions=8, align=4, chunk=16, provider="cpu", threads=1, batch=4, latency=True
)


def told(
    probes: Sequence[Probe], runtime: Runtime, progress: Progress = silent
) -> Iterator[tuple[Probe, Measurement | None]]:
    """Times that follow the MACs and the number of kernels: what is measured in passing is now and then all noise."""
    yield from ((p, Measurement(1e-6 * len(p.links) + 1e-9 * p.macs, 0.0)) for p in probes)


@pytest.fixture(scope="module", autouse=True)
def _clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calib.measure.latency_table.time_probes", told)
        patch.setattr("hmc_onnx.profiling.candidate_times.kernel_times", lambda *_: None)  # which would contradict
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def original() -> onnx.ModelProto:
    return resnet((2, 2), (8, 16), size=8, classes=5)


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    """For what does not depend on the network."""
    return resnet((1,), (8,), size=8, classes=5)


def calibration(count: int = 32) -> CalibrationData:
    return CalibrationData({"input": images(count, 8)}, None, "noise")


@pytest.fixture(scope="module")
def profile(original: onnx.ModelProto) -> hmc_onnx.Profile:
    return hmc_onnx.profile(original, calibration(), SETTINGS)


def test_every_choice_has_a_time_and_those_of_the_network_add_up(profile: hmc_onnx.Profile) -> None:
    assert profile.latency is not None
    assert profile.latency.batch == 4
    assert profile.latency.by_macs == []
    assert profile.latency.machine == this_machine(SETTINGS.runtime)
    for layer in profile.layers:
        assert layer.seconds is not None and layer.seconds > 0
        for choice in layer.choices:
            assert choice.seconds is not None
            assert (choice.seconds == 0) == (choice.method == "removed")
            if choice.rank and choice.inputs == choice.outputs == 0:
                assert choice.seconds < layer.seconds
    tight, loose = (hmc_onnx.solve(profile, Target(latency=share)) for share in (0.7, 0.9))
    assert tight.latency is not None and loose.latency is not None
    assert tight.latency.expected <= 0.7 and loose.latency.expected <= 0.9
    assert tight.sensitivity >= loose.sensitivity
    together = hmc_onnx.solve(profile, Target(latency=0.9, macs=0.5))
    assert together.latency is not None and together.latency.expected <= 0.9
    assert together.macs <= 0.5 * profile.macs


def test_a_correction_makes_the_bound_tighter(profile: hmc_onnx.Profile) -> None:
    plan = Program(profile).solve(Target(latency=0.9), correction=0.8)
    assert plan.latency is not None and plan.latency.expected <= 0.72
    with pytest.raises(SettingsError, match=r"latency=0\.001 is below .* reach on this model, latency=0\."):
        hmc_onnx.solve(profile, Target(latency=0.001))


def test_without_latencies_no_plan_for_the_time_is_made(small: onnx.ModelProto) -> None:
    profile = hmc_onnx.profile(small, calibration(), SETTINGS.model_copy(update={"latency": False}))
    assert profile.latency is None
    with pytest.raises(SettingsError, match="profile again with `latency=True`"):
        hmc_onnx.solve(profile, Target(latency=0.8))


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
    monkeypatch.setattr(trials, "PRUNING", (1.0,))
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


def test_a_table_of_another_machine_plans_for_that(tmp_path: Path) -> None:
    # with padded shortcuts, how many channels a layer of a stage keeps depends on the data, so not all can be foreseen
    original = resnet((2, 2), (8, 16), shortcut="B", size=8, classes=5)
    own = measure_table(Context(original, calibration(), SETTINGS))
    other = LatencyTable(machine=own.machine.model_copy(update={"processor": "another"}), entries=own.entries)
    other.write(tmp_path / "other.json")
    settings = SETTINGS.model_copy(update={"latency_table": tmp_path / "other.json"})
    profile = hmc_onnx.profile(original, calibration(), settings)
    assert profile.latency is not None
    assert profile.latency.machine.processor == "another"
    assert profile.latency.by_macs == []  # all that can be planned has been measured there
    result = hmc_onnx.compress(original, calibration(), "latency=0.8", settings=settings)
    assert result.plan.latency is not None and result.plan.latency.measured is None
    with pytest.raises(SettingsError, match=r"has no time of this model at batch 2: .*latency measure MODEL --batch 2"):
        hmc_onnx.profile(original, calibration(), settings.model_copy(update={"batch": 2}))


def test_a_table_that_was_made_on_a_busy_machine_is_used_and_said(small: onnx.ModelProto) -> None:
    table = measure_table(Context(small, calibration(), SETTINGS))
    unsure = {
        k: e.model_copy(update={"uncertainty": 9 * (e.seconds or 0)}) if k.startswith("model ") else e
        for k, e in table.entries.items()
    }
    given = LatencyTable(machine=table.machine, entries=unsure)
    clock = Clock(Context(small, calibration(), SETTINGS.model_copy(update={"latency_table": given})))
    with pytest.warns(HmcWarning, match=r"was busy while the latency table \(of .+\) was made") as said:
        assert clock.time_whole() == clock.time_whole()
    assert len(said) == 1


def test_what_cannot_be_timed_alone_is_taken_by_its_macs(original: onnx.ModelProto) -> None:
    table = measure_table(Context(original, calibration(), SETTINGS))
    lost = {
        k: e if k.startswith("model ") else e.model_copy(update={"seconds": None}) for k, e in table.entries.items()
    }
    given = LatencyTable(machine=table.machine, entries=lost)
    profile = hmc_onnx.profile(original, calibration(), SETTINGS.model_copy(update={"latency_table": given}))
    assert profile.latency is not None
    assert set(profile.latency.by_macs) == {layer.name for layer in profile.layers}
    macs = sum(layer.macs for layer in profile.layers)
    for layer in profile.layers:
        assert layer.seconds == pytest.approx(profile.latency.seconds * layer.macs / macs)
        for choice in layer.choices:
            assert choice.seconds == pytest.approx(layer.seconds * choice.macs / layer.macs)


def test_the_cache_is_used_again(small: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    hmc_onnx.profile(small, calibration(), SETTINGS)
    table, path = cached_table(this_machine(Runtime("cpu", 1)))
    assert path.exists() and table.entries
    monkeypatch.setattr(
        "calib.measure.latency_table.time_probes", lambda missing, *_: iter([]) if not missing else 1 / 0
    )
    hmc_onnx.profile(small, calibration(), SETTINGS)


def test_a_work_folder_keeps_times_that_were_all_in_the_cache(small: onnx.ModelProto, tmp_path: Path) -> None:
    first = hmc_onnx.profile(small, calibration(), SETTINGS)
    second = hmc_onnx.profile(small, calibration(), SETTINGS, Work(work_dir=tmp_path / "work"))
    kept = read_table(tmp_path / "work" / "latency.json")
    assert first.latency is not None and second.latency is not None
    assert kept.digest() == second.latency.table


def test_a_time_that_a_busy_machine_left_in_the_cache_is_mended_but_not_in_a_run_that_goes_on(
    small: onnx.ModelProto, tmp_path: Path
) -> None:
    hmc_onnx.profile(small, calibration(), SETTINGS)
    table, path = cached_table(this_machine(Runtime("cpu", 1)))
    for key in [k for k in table.entries if k.startswith("model ")]:
        table.entries[key] = ProbeTime(seconds=1e3)
    table.write(path)
    run = Work(work_dir=tmp_path / "work")
    mended = hmc_onnx.profile(small, calibration(), SETTINGS, work=run)
    assert mended.latency is not None and mended.latency.seconds < 1
    own = read_table(tmp_path / "work" / "latency.json")
    own.entries.update({k: ProbeTime(seconds=1e3) for k in own.entries if k.startswith("model ")})
    own.write(tmp_path / "work" / "latency.json")
    resumed = hmc_onnx.profile(small, calibration(), SETTINGS, work=run)
    assert resumed.latency is not None and resumed.latency.seconds == 1e3


def test_a_work_folder_keeps_the_times_and_what_follows_and_is_refused_to_another_run_first(
    small: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # in which there are no times yet
    work = Work(work_dir=tmp_path / "work")
    goal = hmc_onnx.Goal(target=Target(latency=0.7), or_nearest=True)
    first = hmc_onnx.compress(small, calibration(), goal, settings=SETTINGS, work=work)
    assert {"latency.json", "run.json"} < {p.name for p in (tmp_path / "work").iterdir()}
    again = hmc_onnx.compress(small, calibration(), goal, settings=SETTINGS, work=work)
    assert again.plan == first.plan
    monkeypatch.setattr(LatencyTable, "measure", lambda *_: pytest.fail("measured for a folder that is refused"))
    with pytest.raises(SettingsError, match="is of a run with other calibration data"):
        hmc_onnx.compress(small, calibration(24), goal, settings=SETTINGS, work=work)


def test_batches_are_what_the_model_declares_or_what_is_asked_for() -> None:
    open_, fixed = resnet((1,), (4,), size=8), resnet((1,), (4,), size=8)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    assert [serving_batch(open_, ["input"], n) for n in (None, 5)] == [1, 5]
    assert [serving_batch(fixed, ["input"], n) for n in (None, 3)] == [3, 3]
    with pytest.raises(SettingsError, match="`batch` 5: the model takes batches of 3"):
        serving_batch(fixed, ["input"], 5)
    assert serving_feeds(calibration(3), 7)["input"].shape[0] == 7


@pytest.mark.parametrize("labels", [False, True])
def test_the_search_takes_the_fastest_that_keeps_the_bound_on_both_parts(
    original: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, labels: bool
) -> None:
    monkeypatch.setattr(searching, "MOST_VISITS", 3)
    data, work = calibration(240), Work(work_dir=tmp_path / "work")
    if labels:  # the original's own, as it would not be searched from an accuracy near chance
        data = dataclasses.replace(data, labels=run(original, data.feeds)[0].argmax(1))
    result = hmc_onnx.compress(original, data, "max_drop=0.2", settings=SETTINGS, work=work)
    curve = result.report.curve
    assert [p.latency for p in curve] == sorted(p.latency for p in curve)
    (taken,) = [p for p in curve if p.chosen]
    assert max(taken.drop, taken.confirmed) <= 0.2
    assert all(0 < p.uncertainty < 1 for p in curve)
    assert all(max(p.drop, p.confirmed) > 0.2 for p in curve if p.latency < taken.latency)
    again = hmc_onnx.compress(original, data, "max_drop=0.2", settings=SETTINGS, work=work)
    assert again.report.curve == curve
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_in_another_precision_the_search_begins_with_the_original_in_it(
    original: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "MOST_VISITS", 1)
    settings = SETTINGS.model_copy(update={"precision": "int8"})
    run = hmc_onnx.Run(original, calibration(240), settings, hmc_onnx.Work(jobs=1), "search")
    profile = run.profile()
    assert profile.latency is not None
    for unchanged, bound in ((0.5, 1.0), (1.5, 0.999)):
        times = profile.latency.model_copy(update={"unchanged": unchanged * profile.latency.seconds})
        made = planner.Planner(run, profile.model_copy(update={"latency": times}))
        monkeypatch.setattr(made, "plan", lambda *_, **__: (_ for _ in ()).throw(SettingsError("out of reach")))
        assert run.held is not None
        search = searching.Search(run, made, run.held, f"of {unchanged}")
        if unchanged < 1:
            found = search.run(bound)
            assert not found.plan.changes and [p.latency for p in found.curve] == [pytest.approx(unchanged)]
        else:
            with pytest.raises(
                SettingsError, match="no network is faster on this machine than the original in float32"
            ):
                search.run(bound)
