"""The plan against every combination there is, on small random profiles."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmc_onnx.planning.hmc_groups import bearing, differences
from hmc_onnx.planning.program import Program, solve
from hmc_onnx.records.goal import Strategy, Target
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import KEEP, REMOVED, GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.settings import Settings
from passes.core.declined import Declined, Why
from passes.core.errors import SettingsError

STRATEGIES = get_args(Strategy)
FIXED = {"macs": 300, "parameters": 11}  # of nodes that are not layers
# The solver's gap, as a share of the largest single sensitivity and of the sum.
GAP = 1e-3


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Three layers and two groups between them: in a row, or with a shortcut whose group both ends write."""
    ends = draw(st.sampled_from([((0,), (1,), (1,), (2,)), ((0, 1), (1, 2), (2,), ())]))
    producers, consumers = ends[0::2], ends[1::2]
    loss = st.floats(1e-4, 1).map(lambda v: round(v, 4))
    groups = []
    for i, (made, read) in enumerate(zip(producers, consumers, strict=True)):
        if not read or draw(st.integers(0, 4)) == 0:
            continue
        keeps = draw(st.lists(st.sampled_from([2, 4, 6]), unique=True, max_size=2).map(lambda k: sorted(k)[::-1]))
        choices = [GroupChoice(keep=8, removed=[], sensitivity=0)]
        choices += [GroupChoice(keep=k, removed=list(range(8 - k)), sensitivity=draw(loss)) for k in keeps]
        names = {"producers": [f"l{n}" for n in made], "consumers": [f"l{n}" for n in read]}
        groups.append(GroupProfile(name=f"g{i}", size=8, choices=choices, **names))
    layers = []
    for n in range(3):
        before = next((g for g in groups if f"l{n}" in g.consumers), None)
        after = next((g for g in groups if f"l{n}" in g.producers), None)
        places = draw(st.integers(1, 9))
        choices = []
        for a, b in itertools.product(*(range(len(g.choices) if g else 1) for g in (before, after))):
            weights = (before.choices[a].keep if before else 8) * (after.choices[b].keep if after else 8)
            at = {"inputs": a, "outputs": b, "error": 0.0, "measured": True}
            choices.append(
                LayerChoice(method=KEEP, rank=0, macs=weights * places, parameters=weights, sensitivity=0, **at)
            )
            for rank in range(1, draw(st.integers(0, 2)) + 1):
                cost = {
                    "macs": max(weights * places * rank // 4, 1),
                    "parameters": draw(st.integers(1, weights)),
                    "sensitivity": draw(loss),
                }
                choices.append(LayerChoice(method="svd", rank=rank, **cost, **at))
        layers.append(
            LayerProfile(
                name=f"l{n}",
                input_group=before.name if before else None,
                output_group=after.name if after else None,
                macs=64 * places,
                parameters=64,
                choices=choices,
            )
        )
    return Profile(
        model="m",
        align=1,
        data="d",
        settings=Settings(),
        macs=sum(x.macs for x in layers) + FIXED["macs"],
        parameters=64 * 3 + FIXED["parameters"],
        groups=groups,
        layers=layers,
        declined={"other": Declined("other", Why.GROUPED, "it is a grouped Conv")},
    )


Combination = tuple[dict[str, int], tuple[LayerChoice, ...]]


def combinations(profile: Profile) -> list[Combination]:
    """Every choice of the groups, with every choice of the layers that fits it."""
    found = []
    for taken in itertools.product(*(range(len(g.choices)) for g in profile.groups)):
        at = {g.name: a for g, a in zip(profile.groups, taken, strict=True)}
        options = [
            [
                c
                for c in x.choices
                if (c.inputs, c.outputs) == (at.get(x.input_group or "", 0), at.get(x.output_group or "", 0))
            ]
            for x in profile.layers
        ]
        found += [(at, chosen) for chosen in itertools.product(*options)]
    return found


def spent(profile: Profile, combination: Combination, what: str) -> int:
    return FIXED[what] + sum(getattr(c, what) for c in combination[1])


def felt(profile: Profile, combination: Combination) -> float:
    at, chosen = combination
    return sum(g.choices[at[g.name]].sensitivity for g in profile.groups) + sum(c.sensitivity for c in chosen)


def within(profile: Profile, combination: Combination, target: Target) -> bool:
    return all(
        share is None or spent(profile, combination, what) <= share * getattr(profile, what) * (1 + 1e-12)
        for what, share in (("macs", target.macs), ("parameters", target.params))
    )


def permitted(profile: Profile, combination: Combination, strategy: str) -> bool:
    """The strategies in words: what each lets a layer be."""
    at, chosen = combination
    difference = differences(profile)
    to_prune = set()
    for group in profile.groups:
        members = [x for x in profile.layers if x.name in {*group.producers, *group.consumers}]
        if sum((difference[x.name] or 0) * x.macs for x in members) < 0:
            to_prune.add(group.name)
    for layer, choice in zip(profile.layers, chosen, strict=True):
        own = [g for g in (layer.input_group, layer.output_group) if g is not None]
        pruned, decomposed = any(at[g] for g in own), choice.method != KEEP
        if strategy == "prune" and decomposed:
            return False
        if strategy == "lowrank" and pruned:
            return False
        if strategy == "ahc" and own and pruned != decomposed:
            return False
        if strategy == "nahc":
            if any(at[g] for g in own if g not in to_prune):
                return False
            if decomposed and to_prune & set(own):
                return False
    return True


targets = st.tuples(st.floats(0.3, 1), st.sampled_from(["macs", "params", "both"])).map(
    lambda t: Target(**dict.fromkeys(["macs", "params"] if t[1] == "both" else [t[1]], t[0]))
)


def check(profile: Profile, plan: Plan, target: Target) -> Combination:
    """The combination that the plan is, after checking that its numbers are that combination's."""
    at = {}
    for group in profile.groups:
        at[group.name] = next(i for i, c in enumerate(group.choices) if c.removed == plan.groups[group.name].removed)
    chosen = []
    for layer in profile.layers:
        mine = plan.layers[layer.name]
        inputs, outputs = at.get(layer.input_group or "", 0), at.get(layer.output_group or "", 0)
        chosen.append(
            next(
                c
                for c in layer.choices
                if (c.inputs, c.outputs, c.method, c.rank) == (inputs, outputs, mine.method, mine.rank)
            )
        )
    combination = (at, tuple(chosen))
    assert plan.macs == spent(profile, combination, "macs")
    assert plan.parameters == spent(profile, combination, "parameters")
    assert plan.sensitivity == pytest.approx(felt(profile, combination), abs=1e-9)
    assert within(profile, combination, target)
    return combination


def test_each_strategys_plan_is_its_best_combination() -> None:
    met: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(profiles(), targets)
    def each(profile: Profile, target: Target) -> None:
        everything = combinations(profile)
        sensitivities = {}
        for strategy in STRATEGIES:
            possible = [c for c in everything if permitted(profile, c, strategy) and within(profile, c, target)]
            if not possible:
                with pytest.raises(SettingsError, match=f"below what strategy '{strategy}' can reach"):
                    solve(profile, target, strategy)
                met[f"{strategy} is refused"] += 1
                continue
            plan = solve(profile, target, strategy)
            combination = check(profile, plan, target)
            assert permitted(profile, combination, strategy)
            best = min(felt(profile, c) for c in possible)
            assert plan.sensitivity <= best * (1 + GAP) + 1e-9
            sensitivities[strategy] = plan.sensitivity
            met[f"{strategy} is solved"] += 1
        for strategy, value in sensitivities.items():
            assert sensitivities["hmc"] <= value * (1 + GAP) + 1e-9, strategy

    each()
    assert all(met[f"{strategy} is {what}"] >= 3 for strategy in STRATEGIES for what in ("solved", "refused")), met


@settings(max_examples=40, deadline=None, derandomize=True)
@given(profiles(), st.data())
def test_a_budget_that_a_combination_meets_exactly_is_met(profile: Profile, data: st.DataObject) -> None:
    combination = data.draw(st.sampled_from(combinations(profile)))
    target = Target(macs=spent(profile, combination, "macs") / profile.macs)
    plan = solve(profile, target)
    check(profile, plan, target)
    assert plan.sensitivity <= felt(profile, combination) * (1 + GAP) + 1e-9


def one_layer(*macs: int) -> Profile:
    """A layer with a candidate for each cost, the dearer the better."""
    at = {"inputs": 0, "outputs": 0, "error": 0.0, "measured": True, "parameters": 1}
    choices = [
        LayerChoice(method="svd" if i else KEEP, rank=i, macs=m, sensitivity=i * 0.1, **at) for i, m in enumerate(macs)
    ]
    layer = LayerProfile(name="l", input_group=None, output_group=None, macs=macs[0], parameters=1, choices=choices)
    return Profile(
        model="m",
        data="d",
        align=1,
        settings=Settings(),
        macs=macs[0],
        parameters=1,
        groups=[],
        layers=[layer],
        declined={},
    )


def test_a_budget_is_kept_to_the_last_mac() -> None:
    profile = one_layer(10**10, 5 * 10**9 + 1, 5 * 10**9)
    assert solve(profile, Target(macs=0.5)).macs == 5 * 10**9
    assert solve(profile, Target(macs=(5 * 10**9 + 1) / 10**10)).macs == 5 * 10**9 + 1


def test_out_of_reach_says_what_is_in_reach() -> None:
    profile = one_layer(1000, 700, 300)
    with pytest.raises(SettingsError) as caught:
        solve(profile, Target(macs=0.299))
    message = str(caught.value)
    assert "\n" not in message
    reachable = re.search(r"macs=(0\.\d+)", message.partition("reach")[2])
    assert reachable is not None
    assert solve(profile, Target(macs=float(reachable[1]))).macs == 300


def test_a_target_that_bounds_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="bounds nothing"):
        solve(one_layer(10, 5), Target())


def test_a_plan_tells_the_profile_and_its_reasons() -> None:
    profile = one_layer(1000, 700, 300)
    plan = solve(profile, Target(macs=0.5))
    assert (plan.model, plan.data, plan.settings, plan.strategy) == ("m", "d", profile.settings, "hmc")
    layer = plan.layers["l"]
    assert layer.difference == differences(profile)["l"]
    assert layer.bears == bearing(layer.difference) == "lowrank"
    assert "decomposed to 30% of its MACs" in layer.reason
    assert "met without changing" in solve(profile, Target(macs=1)).layers["l"].reason


@given(profile=profiles(), strategy=st.sampled_from(STRATEGIES))
def test_where_the_target_does_not_bind_nothing_is_changed(profile: Profile, strategy: Strategy) -> None:
    free = [
        layer.model_copy(update={"choices": [c.model_copy(update={"sensitivity": 0.0}) for c in layer.choices]})
        for layer in profile.layers
    ]
    spared = [
        g.model_copy(update={"choices": [c.model_copy(update={"sensitivity": 0.0}) for c in g.choices]})
        for g in profile.groups
    ]
    plan = solve(profile.model_copy(update={"layers": free, "groups": spared}), Target(macs=1.0, params=1.0), strategy)
    assert {layer.method for layer in plan.layers.values()} == {KEEP}
    assert not any(group.removed for group in plan.groups.values())
    assert plan.macs == profile.macs


def test_a_decomposition_of_no_measured_loss_is_taken_only_where_it_is_needed() -> None:
    def layer(name: str, loss: float) -> LayerProfile:
        cost = {"inputs": 0, "outputs": 0, "error": 0.0, "measured": True, "parameters": 1}
        kept = LayerChoice(method=KEEP, rank=0, macs=100, sensitivity=0, **cost)
        low = LayerChoice(method="svd", rank=1, macs=50, sensitivity=loss, **cost)
        return LayerProfile(name=name, input_group=None, output_group=None, macs=100, parameters=1, choices=[kept, low])

    layers = [layer("free", 0.0), layer("also free", 0.0), layer("dear", 1.0)]
    profile = Profile(
        model="m", align=1, data="d", settings=Settings(), macs=300, parameters=3, groups=[], layers=layers, declined={}
    )
    taken = {share: [p.method for p in solve(profile, Target(macs=share)).layers.values()] for share in (0.99, 0.6)}
    assert sorted(taken[0.99]) == [KEEP, KEEP, "svd"]
    assert taken[0.99][2] == KEEP
    assert taken[0.6] == ["svd"] * 3


@pytest.mark.parametrize("count", [None, *range(4)])
def test_as_many_residual_branches_are_removed_as_asked(count: int | None) -> None:
    losses = [(0.3, 0.5), (0.1, 0.9), (0.2, 0.4)]  # of a half of the channels, and of the branch
    groups, layers = [], []
    for i, (half, whole) in enumerate(losses):
        choices = [
            GroupChoice(keep=8, removed=[], sensitivity=0),
            GroupChoice(keep=4, removed=list(range(4)), sensitivity=half),
            GroupChoice(keep=0, removed=list(range(8)), sensitivity=whole),
        ]
        groups.append(GroupProfile(name=f"g{i}", size=8, producers=[], consumers=[f"l{i}"], choices=choices))
        cost = {"outputs": 0, "rank": 0, "parameters": 1, "error": 0.0, "sensitivity": 0, "measured": True}
        own = [
            LayerChoice(method=REMOVED if c.keep == 0 else KEEP, inputs=a, macs=10 * c.keep, **cost)
            for a, c in enumerate(choices)
        ]
        layers.append(
            LayerProfile(name=f"l{i}", input_group=f"g{i}", output_group=None, macs=80, parameters=1, choices=own)
        )
    profile = Profile(
        model="m", align=1, data="d", settings=Settings(), macs=240, parameters=3, groups=groups, layers=layers,
        declined={},
    )  # fmt: skip
    within = [
        taken
        for taken in itertools.product(range(3), repeat=3)
        if count in (None, taken.count(2)) and sum((8, 4, 0)[n] for n in taken) <= 16
    ]

    def lost(taken: tuple[int, ...]) -> float:
        return sum((0, *own)[n] for own, n in zip(losses, taken, strict=True))

    best = min(within, key=lost)
    plan = Program(profile).solve(Target(macs=2 / 3), branches=count)
    assert plan.removed_branches == best.count(2)
    assert plan.sensitivity == pytest.approx(lost(best))
