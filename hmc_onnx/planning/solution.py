"""The plan that a solution of the integer program says, and the plan that changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hmc_onnx.execution.context import Context
from hmc_onnx.planning.hmc_groups import bearing, differences
from hmc_onnx.planning.taken import Taken
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import GroupPlan, LayerPlan, Plan, PlannedLatency
from hmc_onnx.records.profile import KEEP, REMOVED, LatencyProfile, LayerChoice, LayerProfile

if TYPE_CHECKING:
    from hmc_onnx.planning.program import Program

__all__ = ["plan_of", "unchanged"]


def unchanged(context: Context) -> Plan:
    """The plan that changes nothing; it needs no profile."""
    layers = {
        name: LayerPlan(
            method=KEEP,
            macs=subject.macs(),
            parameters=sum(context.costs[use.name].parameters for use in subject.uses),
            reason="the target asks for no change",
            also=[use.name for use in subject.further],
        )
        for name, subject in context.compressible.layers.items()
    }
    return Plan(
        model=context.digest,
        data=context.data.digest(),
        settings=context.settings,
        strategy="hmc",
        target=Target(),
        groups={name: GroupPlan(size=group.size, removed=[]) for name, group in context.compressible.groups.items()},
        layers=layers,
        declined=context.compressible.declined,
        macs=context.cost.macs,
        parameters=context.cost.parameters,
        sensitivity=0.0,
    )


def plan_of(program: Program, solution: np.ndarray, target: Target, gap: float) -> Plan:
    """The plan that a solution of a program says.

    Args:
        program: the program.
        solution: its solution, a 0/1 vector (choices,): those of the groups come first, then those of the layers.
        target: the target that the solution meets.
        gap: the proven relative gap to the least total sensitivity.
    """
    profile, as_it_is = program.profile, bool(np.array_equal(solution, program.unchanged))
    groups = {
        g.name: GroupPlan(size=g.size, removed=g.choices[a].removed, sensitivity=g.choices[a].sensitivity)
        for (g, a), taken in zip(program.groups, solution, strict=False)
        if taken
    }
    difference = differences(profile)
    layers = {}
    for own, taken in zip(program.layers, solution[len(program.groups) :], strict=True):
        if taken:
            layer, c = own.layer, own.choice
            layers[layer.name] = LayerPlan(
                method=c.method,
                rank=c.rank,
                bears=bearing(difference[layer.name]),
                difference=difference[layer.name],
                sensitivity=own.sensitivity,
                macs=c.macs,
                parameters=c.parameters,
                seconds=own.seconds,
                reason=_reason(own, as_it_is),
                also=layer.also,
                in_float=own.in_float,
            )
    return Plan(
        model=profile.model,
        data=profile.data,
        settings=profile.settings,
        strategy=program.strategy,
        target=target,
        groups=groups,
        layers={layer.name: layers[layer.name] for layer in profile.layers},
        declined=profile.declined,
        macs=round(program.spent("macs", solution)),
        parameters=round(program.spent("parameters", solution)),
        latency=None if profile.latency is None else _planned_latency(profile.latency, program, solution),
        sensitivity=program.lost(solution),
        gap=gap,
    )


def _planned_latency(measured: LatencyProfile, program: Program, solution: np.ndarray) -> PlannedLatency:
    return PlannedLatency(
        batch=measured.batch,
        machine=measured.machine,
        expected=program.spent("seconds", solution) / measured.seconds,
        by_macs=measured.by_macs,
    )


def _reason(taken: Taken, as_it_is: bool) -> str:
    """The reason for a choice, in one phrase; `as_it_is` says that the plan changes nothing."""
    reason = _reason_of_change(taken.layer, taken.choice, as_it_is)
    if not taken.in_float:
        return reason
    slower = (taken.choice.float_seconds or 0.0) > (taken.choice.seconds or 0.0)
    why = "rounding would lose more than its time is worth" if slower else "that is faster than INT8 here"
    return f"{reason}; in float32, as {why}"


def _reason_of_change(layer: LayerProfile, choice: LayerChoice, as_it_is: bool) -> str:
    if as_it_is:
        return "the target is met without changing anything"
    if choice.method == REMOVED:
        return "the residual branch that it is in is removed"
    pruned = choice.inputs > 0 or choice.outputs > 0
    if choice.method == KEEP and not pruned:
        return "kept: changing it would cost more accuracy for what it saves than the changes that were made"
    what = {(True, True): "pruned and decomposed", (True, False): "pruned", (False, True): "decomposed"}
    share = choice.macs / max(layer.macs, 1)
    return f"{what[pruned, choice.method != KEEP]} to {share:.0%} of its MACs"
