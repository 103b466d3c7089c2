"""Removed residual branches: which layers go with one, and what is lost once the layers behind it are repaired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.execution.context import Context
from hmc_onnx.planning import repaired_branches
from hmc_onnx.planning.joint_loss import correlation
from hmc_onnx.planning.repaired_branches import are_repaired, layers_to_repair, with_repaired_branches, without_branches
from hmc_onnx.planning.trial import MOST_TRIALS, Trial
from hmc_onnx.profiling.profiler import profile
from hmc_onnx.records.profile import GroupProfile
from hmc_onnx.records.work import Work
from hmc_onnx.rewriting.applying import apply

SETTINGS = hmc_onnx.Settings(
    samples=160, kl_samples=16, positions=8, align=4, provider="cpu", threads=1, branches=True, fine=False
)
DATA = CalibrationData({"input": images(160, 8)}, None, "noise")


@pytest.fixture(scope="module", params=["basic", "bottleneck"])
def served(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return resnet((3, 2), (8, 16), block=request.param, shortcut="B", size=8, classes=5)


@pytest.fixture(scope="module")
def context(served: onnx.ModelProto) -> Context:
    return Context(served, DATA, SETTINGS)


@pytest.fixture(scope="module")
def profiled(context: Context) -> hmc_onnx.Profile:
    return profile(context)


@pytest.fixture(scope="module")
def repaired(context: Context, profiled: hmc_onnx.Profile) -> hmc_onnx.Profile:
    return with_repaired_branches(context, profiled)


def ends(profile: hmc_onnx.Profile) -> list[GroupProfile]:
    return [group for group in profile.groups if group.choices[-1].removes_branch]


def convs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights of the Convs, by the node's name."""
    weights = {t.name: to_array(t) for t in model.graph.initializer}
    return {n.name: weights[n.input[1]] for n in model.graph.node if n.op_type == "Conv"}


def test_a_branch_goes_with_all_of_its_layers_and_no_other(context: Context, profiled: hmc_onnx.Profile) -> None:
    every = convs(context.served)
    assert len(ends(profiled)) == 5
    for group in ends(profiled):
        block = group.consumers[0].split(".conv")[0]  # such as /layer1.0
        own = {name for name in every if name.startswith(f"{block}.conv")}
        assert len(own) in (2, 3)
        left = convs(apply(context, without_branches(context, profiled, [group]), most=0))
        assert left.keys() == every.keys() - own
        for name, weight in left.items():
            np.testing.assert_array_equal(weight, every[name])


def test_as_many_layers_behind_the_first_change_are_repaired_as_asked(
    context: Context, profiled: hmc_onnx.Profile
) -> None:
    plan = without_branches(context, profiled, ends(profiled)[1:2])
    every, left = convs(context.served), convs(apply(context, plan, most=2))
    behind = [name for name in left if name > ends(profiled)[1].consumers[0]]
    assert [name for name in left if not np.array_equal(left[name], every[name])] == behind[:2]


def test_the_sensitivities_are_those_of_repaired_networks(
    context: Context, profiled: hmc_onnx.Profile, repaired: hmc_onnx.Profile
) -> None:
    trial = Trial(context)
    for group in ends(profiled):
        plan = without_branches(context, profiled, [group])
        after = next(g for g in repaired.groups if g.name == group.name)
        lost = trial.losses(plan, heat=1.0, most=layers_to_repair(context, plan)).mean()
        assert after.choices[-1].sensitivity == pytest.approx(lost)
        assert after.choices[:-1] == group.choices[:-1]
        assert lost < trial.losses(plan, heat=1.0, most=0).mean()
    assert [g for g in repaired.groups if g.name not in {e.name for e in ends(profiled)}] == [
        g for g in profiled.groups if g not in ends(profiled)
    ]
    assert repaired.layers == profiled.layers


def test_the_branches_of_a_stage_have_the_correlation_of_some_that_are_removed_together(
    context: Context, profiled: hmc_onnx.Profile, repaired: hmc_onnx.Profile
) -> None:
    trial, nats = Trial(context), {group.name: group.choices[-1].sensitivity for group in ends(repaired)}
    found = []
    for stage in (ends(profiled)[:3], ends(profiled)[3:]):
        two = sorted(stage, key=lambda group: nats[group.name])[:2]
        plan = without_branches(context, profiled, two)
        lost = trial.losses(plan, heat=1.0, most=layers_to_repair(context, plan)).mean()
        found.append(correlation(np.array([nats[group.name] for group in two]), lost))
    names = [group.name for group in ends(profiled)]
    assert [stage.branches for stage in repaired.stages] == [names[:3], names[3:]]
    assert [stage.correlation for stage in repaired.stages] == pytest.approx([np.mean(found)] * 2)


def test_layers_between_removed_branches_are_repaired_beside_those_behind_them(
    context: Context, profiled: hmc_onnx.Profile
) -> None:
    first, second, third = ends(profiled)[:3]
    plan = without_branches(context, profiled, [first, third])
    block = second.consumers[0].split(".conv")[0]
    between = [name for name in plan.layers if name.startswith(block) or "layer1.0.downsample" in name]
    assert layers_to_repair(context, plan) == len(between) + repaired_branches.REPAIRED


def test_they_are_without_the_rounding_to_int8_which_has_a_sensitivity_of_its_own(
    context: Context, profiled: hmc_onnx.Profile, repaired: hmc_onnx.Profile
) -> None:
    other = Context(context.served, DATA, SETTINGS.model_copy(update={"precision": "int8"}))
    assert with_repaired_branches(other, profiled).groups == repaired.groups


def test_they_are_not_measured_again_where_a_run_goes_on(
    context: Context, profiled: hmc_onnx.Profile, repaired: hmc_onnx.Profile, tmp_path: Path
) -> None:
    kept = Context(context.served, DATA, SETTINGS, Work(work_dir=tmp_path))
    assert with_repaired_branches(kept, profiled) == repaired
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "losses", None)
        assert with_repaired_branches(kept, profiled) == repaired


def test_fewer_layers_are_repaired_where_they_are_wide(
    context: Context, profiled: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, *_, last = [without_branches(context, profiled, [group]) for group in ends(profiled)]
    assert layers_to_repair(context, first) == repaired_branches.REPAIRED
    assert layers_to_repair(context, last) == repaired_branches.FEWEST  # there is one
    widths = [s.layer.geometry.features for n, s in context.compressible.layers.items() if "layer1.1" in n]
    monkeypatch.setattr(repaired_branches, "WORK", sum(n**3 for n in (*widths, widths[0])))
    assert layers_to_repair(context, first) == len(widths) + 1
    monkeypatch.setattr(repaired_branches, "WORK", 1.0)
    assert layers_to_repair(context, first) == repaired_branches.FEWEST


def test_a_profile_stays_as_it_is_where_images_are_few(context: Context, profiled: hmc_onnx.Profile) -> None:
    few = Context(context.served, DATA, SETTINGS.model_copy(update={"samples": 100}))
    assert with_repaired_branches(few, profiled) is profiled


@pytest.mark.parametrize("fine", [False, True])
def test_branches_of_a_large_network_are_not_repaired_where_the_search_is_to_be_quick(
    context: Context, monkeypatch: pytest.MonkeyPatch, fine: bool
) -> None:
    monkeypatch.setattr("hmc_onnx.planning.trial.TRIAL_MACS", (MOST_TRIALS - 0.5) * context.cost.macs)
    assert are_repaired(Context(context.served, DATA, SETTINGS.model_copy(update={"fine": fine}))) == fine
