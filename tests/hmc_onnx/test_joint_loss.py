"""What branches of a stage lose together: the formula, its bound by tangents, and the plan that counts it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import Bounds, milp

from hmc_onnx.planning.joint_loss import TANGENTS, JointLoss, correlation
from hmc_onnx.planning.program import Program
from hmc_onnx.records.goal import Target
from hmc_onnx.records.profile import (
    KEEP,
    REMOVED,
    GroupChoice,
    GroupProfile,
    LayerChoice,
    LayerProfile,
    Profile,
    Stage,
)
from hmc_onnx.records.settings import Settings
from passes.core.errors import PlanError

NATS = (0.1, 0.11, 0.12, 0.02, 0.3)
SIZE = 8


def branches(nats: tuple[float, ...] = NATS) -> list[GroupProfile]:
    """A group for each residual branch that may be removed."""
    return [
        GroupProfile(
            name=f"g{i}",
            size=SIZE,
            producers=[],
            consumers=[f"l{i}"],
            choices=[
                GroupChoice(keep=SIZE, removed=[], sensitivity=0),
                GroupChoice(keep=0, removed=list(range(SIZE)), sensitivity=own),
            ],
        )
        for i, own in enumerate(nats)
    ]


def profile(stages: list[Stage], factor: float = 1.0) -> Profile:
    """Five layers, which each take a fifth of the MACs and read a branch that may be removed, which loses `NATS`."""
    cost = {"outputs": 0, "rank": 0, "parameters": 1, "error": 0.0, "sensitivity": 0, "measured": True}
    choices = [
        LayerChoice(method=KEEP, inputs=0, macs=10, **cost),
        LayerChoice(method=REMOVED, inputs=1, macs=0, **cost),
    ]
    layers = [
        LayerProfile(name=f"l{i}", input_group=f"g{i}", output_group=None, macs=10, parameters=1, choices=choices)
        for i in range(len(NATS))
    ]
    return Profile(
        model="m",
        align=1,
        data="d",
        settings=Settings(),
        macs=50,
        parameters=5,
        groups=branches(tuple(factor * nats for nats in NATS)),
        stages=stages,
        layers=layers,
        declined={},
    )


def norm_of_sum(nats: list[float], rho: float) -> float:
    """The squared norm of a sum of errors, from the Gram matrix of these."""
    roots = np.sqrt(nats)
    gram = np.outer(roots, roots) * np.where(np.eye(len(nats)) > 0, 1.0, rho)
    return float(gram.sum())


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_the_correlation_is_that_of_the_errors(rho: float) -> None:
    assert correlation(np.array(NATS), norm_of_sum([*NATS], rho)) == pytest.approx(rho)


def test_a_correlation_is_neither_negative_nor_above_one() -> None:
    alone = np.array([1.0, 1.0])
    assert correlation(alone, 1.5) == 0.0
    assert correlation(alone, 5.0) == 1.0


def test_what_is_lost_beside_the_sum_and_its_bound() -> None:
    taken = [(group, choice) for group in branches() for choice in (0, 1)]
    joint = JointLoss.of(Stage(branches=["g0", "g1", "g2", "g4"], correlation=0.4), taken, len(taken) + 3)
    assert len(joint.roots) == len(taken) + 3
    off = 0.4 * (joint.roots.sum() / TANGENTS / 2) ** 2
    constraint = joint.bound(len(taken) + 4, len(taken) + 5, 0.5)
    for removed in itertools.product((0, 1), repeat=5):
        solution = np.zeros(len(taken) + 3)
        solution[: len(taken)] = [choice == gone for gone in removed for choice in (0, 1)]
        own = [nats for i, (nats, gone) in enumerate(zip(NATS, removed, strict=True)) if gone and i != 3]
        assert joint.beside_sum(solution) == pytest.approx(norm_of_sum(own, 0.4) - sum(own))
        fixed = np.append(solution, [0.0])  # a further variable, of another stage
        found = milp(
            np.append(np.zeros(len(fixed)), 1.0),
            bounds=Bounds(np.append(fixed, 0.0), np.append(fixed, np.inf)),
            constraints=[constraint],
        )
        assert joint.beside_sum(solution) - off - 1e-9 <= 0.5 * found.fun <= joint.beside_sum(solution) + 1e-9


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize(("count", "asked"), [(1, None), (2, None), (2, 2), (3, None), (3, 3)])
def test_the_plan_loses_least_together(count: int, asked: int | None, factor: float) -> None:
    stages = [Stage(branches=["g0", "g1", "g3"], correlation=0.9), Stage(branches=["g2", "g4"], correlation=0.1)]

    def lost(gone: tuple[int, ...]) -> float:
        return sum(
            norm_of_sum([NATS[i] for i in gone if f"g{i}" in stage.branches], stage.correlation) for stage in stages
        )

    best = min(itertools.combinations(range(5), count), key=lost)
    plan = Program(profile(stages, factor)).solve(Target(macs=1 - count / 5), branches=asked)
    assert [i for i in range(5) if plan.groups[f"g{i}"].removed] == list(best)
    assert plan.sensitivity == pytest.approx(factor * lost(best))
    assert plan.proven


def test_without_stages_each_branch_counts_alone() -> None:
    plan = Program(profile([])).solve(Target(macs=0.4))
    assert [i for i in range(5) if plan.groups[f"g{i}"].removed] == [0, 1, 3]
    assert plan.sensitivity == pytest.approx(0.23)


def test_a_profile_keeps_its_stages(tmp_path: Path) -> None:
    own = profile([Stage(branches=["g0", "g1"], correlation=0.25)])
    (tmp_path / "profile.json").write_text(own.model_dump_json())
    assert Profile.load(tmp_path / "profile.json") == own
    assert "stages" not in profile([]).model_dump_json()


def test_a_stage_of_other_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="'g9', which is none of the profile's"):
        profile([Stage(branches=["g0", "g9"], correlation=0.25)])


@pytest.mark.parametrize("loss", ["-0.1", "1e999"])
def test_a_profile_with_a_loss_that_cannot_be_is_refused(tmp_path: Path, loss: str) -> None:
    good = profile([]).model_dump_json()
    (tmp_path / "profile.json").write_text(good.replace(f'"sensitivity":{NATS[0]}', f'"sensitivity":{loss}'))
    with pytest.raises(PlanError, match=r"profile\.json.*sensitivity"):
        Profile.load(tmp_path / "profile.json")
