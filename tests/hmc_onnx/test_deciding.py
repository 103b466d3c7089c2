"""Elimination, grouping and solver against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hmc_onnx
from hmc_onnx.planning.hmc_groups import bearing, differences
from hmc_onnx.planning.program import solve
from hmc_onnx.records.goal import Target
from hmc_onnx.records.profile import GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.settings import Settings
from hmc_onnx.search_space.candidates import Curve
from hmc_onnx.search_space.elimination import Consumer, Floors, eliminate
from passes.core.errors import SettingsError
from passes.core.shelf import Kept


def least_error(weight: np.ndarray, moment: np.ndarray, keep: np.ndarray) -> tuple[float, np.ndarray]:
    """Least tr((W - B) M (W - B)ᵀ) over B with zeros outside keep, by numpy's lstsq on a root of M."""
    root = np.linalg.cholesky(moment).T
    solved = np.zeros_like(weight)
    solved[:, keep] = np.linalg.lstsq(root[:, keep], root @ weight.T, rcond=None)[0].T
    return float(np.sum((root @ (weight - solved).T) ** 2)), solved


def test_each_removal_is_the_one_that_costs_least_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    consumers = []
    for kernel in (2, 1):
        n = 6 * kernel
        root = rng.normal(size=(n, 3 * n))
        weight = rng.normal(size=(4, 6, kernel))
        consumers.append(Consumer(Kept(weight), Kept(root @ root.T / n), np.array([0, 1, 2, 3, 4, 4])))
    found = eliminate(consumers, 5, [1, 3], Floors([np.array([0, 1, 2, 3, 4, 4])]))
    gone: list[int] = []
    for c in found.order:
        costs = {}
        for candidate in set(range(5)) - set(gone):
            costs[candidate] = 0.0
            for consumer in consumers:
                flat, k = consumer.weight.array.reshape(4, -1), consumer.weight.array.shape[2]
                keep = np.repeat(~np.isin(consumer.classes, [*gone, candidate]), k)
                response = float(np.einsum("on,nm,om->", flat, consumer.moment.array, flat))
                costs[candidate] += least_error(flat, consumer.moment.array, keep)[0] / response
        assert c == min(costs, key=costs.__getitem__)
        gone.append(int(c))
    assert len(found.order) == 3
    for consumer, kept in zip(consumers, found.weights[3], strict=True):
        weight = kept.array
        keep = np.repeat(~np.isin(consumer.classes, gone), weight.shape[2])
        best = least_error(consumer.weight.array.reshape(4, -1), consumer.moment.array, keep)[1]
        np.testing.assert_allclose(weight.reshape(4, -1), best, atol=1e-4)


def test_no_axis_loses_more_than_it_may() -> None:
    consumer = Consumer(Kept(np.ones((2, 6, 1))), Kept(np.eye(6)), np.arange(6))
    floors = [np.arange(6), np.array([0, 1, 2])]
    found = eliminate([consumer], 6, [6], Floors(floors, 2))
    assert len(found.order) == 4
    assert sum(c < 3 for c in found.order) == 1


def test_a_curve_passes_through_what_was_measured_and_is_proportional_beyond() -> None:
    curve = Curve([(0.1, 0.02), (0.01, 0.001), (0.4, 0.2)])
    assert [curve(e) for e in (0.01, 0.1, 0.4)] == pytest.approx([0.001, 0.02, 0.2])
    assert curve(0.8) == pytest.approx(0.4)
    assert curve(0.001) == pytest.approx(0.0001)
    assert curve(0) == 0
    assert 0.001 < curve(0.03) < 0.02


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Two or three layers in a row, a group between each two, each with two or three choices."""
    count = draw(st.integers(2, 3))
    value = st.floats(0.001, 1)
    groups = []
    for i in range(count - 1):
        choices = [GroupChoice(keep=8, removed=[], sensitivity=0)]
        for n in range(draw(st.integers(1, 2))):
            choices.append(GroupChoice(keep=6 - 2 * n, removed=list(range(2 + 2 * n)), sensitivity=draw(value)))
        names = {"producers": [f"l{i}"], "consumers": [f"l{i + 1}"]}
        groups.append(GroupProfile(name=f"g{i}", size=8, choices=choices, **names))
    layers = []
    for i in range(count):
        before, after = groups[i - 1] if i else None, groups[i] if i < count - 1 else None
        choices = []
        for a in range(len(before.choices) if before else 1):
            for b in range(len(after.choices) if after else 1):
                macs = 1000 * (before.choices[a].keep if before else 8) * (after.choices[b].keep if after else 8)
                common = {"inputs": a, "outputs": b, "error": 0.0, "measured": True}
                choices.append(
                    LayerChoice(method="keep", rank=0, macs=macs, parameters=macs // 9, sensitivity=0, **common)
                )
                for rank in range(1, draw(st.integers(1, 2)) + 1):
                    cost = {"macs": macs * rank // 4, "parameters": macs * rank // 30, "sensitivity": draw(value)}
                    choices.append(LayerChoice(method="svd", rank=rank, **cost, **common))
        layers.append(
            LayerProfile(
                name=f"l{i}",
                input_group=before.name if before else None,
                output_group=after.name if after else None,
                macs=64000,
                parameters=64000 // 9,
                choices=choices,
            )
        )
    total = {"macs": 64000 * count + 500, "parameters": 64000 // 9 * count + 7}
    return Profile(
        model="m", data="d", align=1, settings=Settings(), groups=groups, layers=layers, declined={}, **total
    )


def combinations(profile: Profile) -> list[tuple[tuple[int, ...], tuple[LayerChoice, ...], float]]:
    """Every consistent choice for all groups and layers, with its sensitivity."""
    found = []
    for taken in itertools.product(*(range(len(g.choices)) for g in profile.groups)):
        at = {g.name: a for g, a in zip(profile.groups, taken, strict=True)}
        options = [
            [
                c
                for c in layer.choices
                if (c.inputs, c.outputs) == (at.get(layer.input_group, 0), at.get(layer.output_group, 0))
            ]
            for layer in profile.layers
        ]
        base = sum(g.choices[a].sensitivity for g, a in zip(profile.groups, taken, strict=True))
        found += [(taken, c, base + sum(x.sensitivity for x in c)) for c in itertools.product(*options)]
    return found


def fits(profile: Profile, choices: tuple[LayerChoice, ...], target: Target) -> bool:
    macs = 500 + sum(c.macs for c in choices)
    parameters = 7 + sum(c.parameters for c in choices)
    return macs <= (target.macs or 1) * profile.macs and parameters <= (target.params or 1) * profile.parameters


@settings(max_examples=40, deadline=None, derandomize=True)
@given(profiles(), st.floats(0.1, 0.95), st.sampled_from(["macs", "params", "both"]))
def test_the_plan_is_the_best_of_all_combinations(profile: Profile, share: float, what: str) -> None:
    bounds = {"macs": share, "params": share} if what == "both" else {what: share}
    target = Target(**bounds)
    rules = {
        "hmc": lambda taken, c: True,
        "prune": lambda taken, c: all(x.rank == 0 for x in c),
        "lowrank": lambda taken, c: not any(taken),
        "ahc": lambda taken, c: all((x.inputs == x.outputs == 0) == (x.rank == 0) for x in c),
    }
    best_of_all = None
    for strategy, allowed in rules.items():
        possible = [s for t, c, s in combinations(profile) if allowed(t, c) and fits(profile, c, target)]
        if not possible:
            with pytest.raises(SettingsError, match="below what strategy"):
                solve(profile, target, strategy)  # type: ignore[arg-type]
            continue
        plan = solve(profile, target, strategy)  # type: ignore[arg-type]
        assert plan.sensitivity == pytest.approx(min(possible), rel=1e-3)
        assert plan.macs <= (target.macs or 1) * profile.macs + 1
        assert plan.parameters <= (target.params or 1) * profile.parameters + 1
        best_of_all = plan.sensitivity if strategy == "hmc" else best_of_all
        assert best_of_all is not None
        assert best_of_all <= plan.sensitivity * (1 + 1e-3)
    try:
        plan = solve(profile, target, "nahc")
    except SettingsError:
        return
    pruned = {name for name, g in plan.groups.items() if g.removed}
    for layer in profile.layers:
        assert plan.layers[layer.name].rank == 0 or not {layer.input_group, layer.output_group} & pruned


def test_layers_are_grouped_by_what_they_bear() -> None:
    def layer(name: str, loss: float, group: str) -> LayerProfile:
        common = {"inputs": 0, "outputs": 0, "error": 0.0, "measured": True, "parameters": 1}
        choices = [
            LayerChoice(method="keep", rank=0, macs=100, sensitivity=0, **common),
            LayerChoice(method="svd", rank=1, macs=35, sensitivity=loss, **common),
        ]
        return LayerProfile(name=name, input_group=None, output_group=group, macs=100, parameters=1, choices=choices)

    losses = {"bears low rank": 0.01, "bears pruning": 1.0, "bears both": 0.1}
    groups = [
        GroupProfile(
            name=f"group of {name}",
            size=20,
            producers=[name],
            consumers=[],
            choices=[
                GroupChoice(keep=20, removed=[], sensitivity=0),
                GroupChoice(keep=7, removed=list(range(13)), sensitivity=0.1),
            ],
        )
        for name in losses
    ]
    profile = Profile(
        model="m",
        align=1,
        data="d",
        settings=Settings(),
        macs=300,
        parameters=3,
        groups=groups,
        layers=[layer(n, s, f"group of {n}") for n, s in losses.items()],
        declined={},
    )
    found = {name: bearing(d) for name, d in differences(profile).items()}
    assert found == {"bears low rank": "lowrank", "bears pruning": "prune", "bears both": "both"}
    assert bearing(None) == "keep"


@pytest.mark.parametrize(
    "text",
    ["0.5", "macs", "flops=0.5", "macs=half", "macs=0", "macs=1.5", "macs=-1", "params=nan", "macs=0.5,macs=0.6"],
)
def test_a_target_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(hmc_onnx.HmcError, match="target"):
        hmc_onnx.parse_target(text)
