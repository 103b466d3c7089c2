"""Targets that are out of reach: refused before the work, or brought as near as can be."""

from __future__ import annotations

import pytest
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.planning.nearest import nearest
from hmc_onnx.planning.program import solve
from hmc_onnx.records.goal import Goal, Strategy, Target, Unreachable
from hmc_onnx.records.plan import Plan
from passes.core.errors import HmcWarning

pytestmark = pytest.mark.usefixtures("few_iterations")

SETTINGS = hmc_onnx.Settings(samples=16, kl_samples=8, positions=8, chunk=8, provider="cpu", threads=1, fine=False)


def data() -> CalibrationData:
    return CalibrationData({"input": images(16, 8)}, None, "noise")


def test_a_target_that_can_be_reached_is_planned_as_it_is(recwarn: pytest.WarningsRecorder) -> None:
    wanted: list[Target] = []

    def plan(target: Target) -> Plan:
        wanted.append(target)
        return Plan.model_construct(target=target)

    assert nearest(Target(macs=0.5), plan).target == Target(macs=0.5)
    assert wanted == [Target(macs=0.5)] and not recwarn.list


def test_bounds_that_cannot_be_had_together_are_eased_until_they_can() -> None:
    def plan(target: Target) -> Plan:
        assert target.macs is not None and target.params is not None
        if target.macs < 0.4 or target.params < 0.3:
            raise Unreachable("too low", Target(macs=0.4, params=0.3))
        if target.macs + target.params < 0.72:
            raise Unreachable("not together", Target(macs=0.4, params=0.3))
        return Plan.model_construct(target=target)

    with pytest.warns(HmcWarning, match=r"params=0\.1 cannot be reached .*, macs=0\.42,params=0\.315,"):
        found = nearest(Target(macs=0.1, params=0.1), plan)
    assert (found.target.macs, found.target.params) == pytest.approx((0.42, 0.315))


def test_what_is_above_the_least_stays_as_it_was_asked_for() -> None:
    def plan(target: Target) -> Plan:
        if target.macs is not None and target.macs < 0.4:
            raise Unreachable("too low", Target(macs=0.4, params=0.1))
        return Plan.model_construct(target=target)

    with pytest.warns(HmcWarning):
        assert nearest(Target(macs=0.1, params=0.5), plan).target == Target(macs=0.4, params=0.5)


def test_a_network_comes_as_near_as_it_can() -> None:
    original = resnet((1, 1), (4, 8), size=8, classes=5)
    with pytest.raises(Unreachable) as refused:
        hmc_onnx.compress(original, data(), "macs=0.001", settings=SETTINGS)
    goal = Goal(target=Target(macs=0.001), or_nearest=True)
    with pytest.warns(HmcWarning, match="cannot be reached on this model: the nearest"):
        result = hmc_onnx.compress(original, data(), goal, settings=SETTINGS)
    assert refused.value.least.macs is not None
    assert result.plan.target == refused.value.least
    assert result.plan.macs <= refused.value.least.macs * result.profile.macs


@pytest.mark.parametrize("bound", ["latency", "macs", "params"])
def test_what_is_out_of_reach_is_refused_before_the_images_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    def profiled(*_: object) -> None:
        raise AssertionError("profiled for nothing")

    monkeypatch.setattr("hmc_onnx.run.profile", profiled)
    original = resnet((1, 1), (4, 8), size=8, classes=5)
    with pytest.raises(Unreachable, match=rf"target {bound}=0\.0001 is below what strategy 'hmc' can reach") as refused:
        hmc_onnx.compress(original, data(), f"{bound}=0.0001", settings=SETTINGS)
    assert 0.0001 < getattr(refused.value.least, bound) <= 1


@pytest.mark.parametrize("strategy", ["hmc", "ahc", "prune", "lowrank"])
def test_the_least_that_shapes_tell_is_the_least_that_can_be_had(strategy: Strategy) -> None:
    run = hmc_onnx.Run(resnet((1, 1), (8, 8), size=8, classes=5), data(), SETTINGS)
    targets = [Target(macs=0.001), Target(params=0.001)]
    early, measured = [], []
    for target in targets:
        with pytest.raises(Unreachable) as refused:
            run.plan(target, strategy)
        early.append(refused.value.least)
    for target in targets:
        with pytest.raises(Unreachable) as refused:
            solve(run.profile(), target, strategy)
        measured.append(refused.value.least)
    assert early == measured
