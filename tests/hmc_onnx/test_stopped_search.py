"""A search for the best plan that is stopped before it is proven: it holds its target, and says how far it got."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmc_onnx.planning import program
from hmc_onnx.planning.program import solve
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import OPTIMAL_GAP, Plan
from hmc_onnx.records.profile import KEEP, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.settings import Settings

TARGET = Target(macs=0.5)


def knapsack(seed: int, count: int = 60) -> Profile:
    """Layers of random sizes, each with four decompositions: many plans that are nearly as good as the best."""
    rng = np.random.default_rng(seed)
    rest = {"inputs": 0, "outputs": 0, "error": 0.0, "measured": True}
    layers = []
    for i in range(count):
        macs = int(rng.integers(1000, 2000))
        choices = [LayerChoice(method=KEEP, rank=0, macs=macs, parameters=macs, sensitivity=0.0, **rest)]
        for k in range(1, 5):
            left = int(macs * (1 - k / 5) * rng.uniform(0.9, 1.1))
            loss = k**2 * macs * float(rng.uniform(0.9, 1.1))
            choices.append(LayerChoice(method="svd", rank=k, macs=left, parameters=left, sensitivity=loss, **rest))
        own = {"name": f"l{i}", "input_group": None, "output_group": None, "macs": macs, "parameters": macs}
        layers.append(LayerProfile(**own, choices=choices))
    whole = sum(layer.macs for layer in layers)
    own = {"model": "m", "data": "d", "align": 1, "settings": Settings(), "macs": whole, "parameters": whole}
    return Profile(**own, groups=[], layers=layers, declined={})


def test_a_stopped_search_gives_a_plan_that_is_not_called_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = [knapsack(seed) for seed in range(4)]
    proven = [solve(profile, TARGET) for profile in profiles]
    monkeypatch.setattr(program, "MOST_NODES", 1)
    stopped = [solve(profile, TARGET) for profile in profiles]
    assert all(plan.proven for plan in proven)
    assert not all(plan.proven for plan in stopped)
    for profile, best, plan in zip(profiles, proven, stopped, strict=True):
        assert plan.macs <= 0.5 * profile.macs
        assert plan.proven == (plan.gap <= OPTIMAL_GAP)
        # what has been proven is no more than what is true
        assert plan.sensitivity * (1 - plan.gap) <= best.sensitivity * (1 + 1e-9)
        assert plan == solve(profile, TARGET)


@pytest.mark.parametrize(("found", "kept"), [(0.02, 0.02), (np.inf, 1.0)])
def test_the_gap_of_a_stopped_search_is_in_the_plan_and_in_its_file(
    found: float, kept: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    solver = program.milp

    def stopped(*args: object, **options: object) -> object:
        result = solver(*args, **options)
        result.mip_gap = found
        return result

    monkeypatch.setattr(program, "milp", stopped)
    plan = solve(knapsack(0, 5), TARGET)
    assert (plan.gap, plan.proven) == (kept, False)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(("loss", "gap"), [(1e-7, 0.0), (1e-3, 0.5)])
def test_a_gap_that_is_nothing_beside_the_largest_loss_of_a_choice_is_none(
    loss: float, gap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = {"inputs": 0, "outputs": 0, "error": 0.0, "measured": True, "parameters": 1}
    kept = LayerChoice(method=KEEP, rank=0, macs=100, sensitivity=0.0, **rest)
    choices = [
        kept,
        *(
            LayerChoice(method="svd", rank=k, macs=m, sensitivity=nats, **rest)
            for k, m, nats in ((2, 50, loss), (1, 20, 1.0))
        ),
    ]
    layer = LayerProfile(name="l", input_group=None, output_group=None, macs=100, parameters=1, choices=choices)
    profile = Profile(
        model="m",
        data="d",
        align=1,
        settings=Settings(),
        macs=100,
        parameters=1,
        groups=[],
        layers=[layer],
        declined={},
    )
    solver = program.milp

    def stopped(*args: object, **options: object) -> object:
        result = solver(*args, **options)
        result.mip_gap = 0.5
        return result

    monkeypatch.setattr(program, "milp", stopped)
    plan = solve(profile, TARGET)
    assert (plan.sensitivity, plan.gap) == (loss, gap)
