"""The search for the fastest network within a bound on the loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from planned import SETTINGS, calibration
from zoo import run

import hmc_onnx
from hmc_onnx.planning import accuracy_search as searching
from hmc_onnx.planning import planner
from hmc_onnx.records.work import Work
from passes.core.errors import SettingsError


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
