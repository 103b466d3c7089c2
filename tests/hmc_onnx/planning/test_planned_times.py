"""The times that plans are made from: of this machine or another, kept in the cache and in a work folder."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
from planned import SETTINGS, calibration
from zoo import resnet

import hmc_onnx
from calib.measure.latency_table import LatencyTable, ProbeTime, cached_table, read_table, this_machine
from calib.runtime.batching import serving_batch, serving_feeds
from calib.runtime.sessions import Runtime
from hmc_onnx.execution.context import Context
from hmc_onnx.profiling.candidate_times import Clock
from hmc_onnx.profiling.whole_table import measure_table
from hmc_onnx.records.goal import Target
from hmc_onnx.records.work import Work
from passes.core.errors import HmcWarning, SettingsError


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


def test_without_latencies_no_plan_for_the_time_is_made(small: onnx.ModelProto) -> None:
    profile = hmc_onnx.profile(small, calibration(), SETTINGS.model_copy(update={"latency": False}))
    assert profile.latency is None
    with pytest.raises(SettingsError, match="profile again with `latency=True`"):
        hmc_onnx.solve(profile, Target(latency=0.8))


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
    monkeypatch.setattr("hmc_onnx.planning.accepted_time.UNSURE", math.inf)  # a plan of unknown time is not kept
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
