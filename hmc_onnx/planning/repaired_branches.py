"""Sensitivities of removed residual branches, with the layers behind each of them repaired.

Where channels are removed or a layer is decomposed, the profile measures the network with the least-squares weights of
the layers concerned. A removed branch leaves no such layer: the profile has it replaced by its mean, and the layers
behind it as they are. These make up for most of it once they are repaired, and for a share that differs from branch to
branch (docs/experiments.md). So each branch is removed alone, the next few layers are repaired, and what is lost then
takes the place of what the profile has. Otherwise too few branches would be removed, and not the right ones.
"""

from __future__ import annotations

import numpy as np

from hmc_onnx.execution.context import Context
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.planning.taken import LEAST
from hmc_onnx.planning.trial import TRIAL_MACS, Trial, enough_images
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import REMOVED, GroupProfile, Profile

__all__ = ["are_repaired", "layers_to_repair", "with_repaired_branches", "without_branch"]

# Layers that are repaired behind a removed branch. With six, a ResNet-56 loses a tenth more than with all repaired.
REPAIRED = 6
# Their work at most, as the sum of the cubes of their numbers of inputs, that of some seconds; but two layers at least.
WORK, FEWEST = 1e11, 2


def are_repaired(context: Context) -> bool:
    """Whether a run's branches are measured with repairs.

    It has to have some, and enough images for them. Repairs of a ResNet-50's take about two minutes, so in a search
    that is to be quick those of so large a network are not measured.
    """
    small_enough = context.settings.fine or context.cost.macs <= TRIAL_MACS
    return bool(context.compressible.removable) and enough_images(context) and small_enough


def with_repaired_branches(context: Context, profile: Profile) -> Profile:
    """A profile whose sensitivities of removed branches are measured with the layers behind them repaired.

    The profile is returned as it is where they are not to be (`are_repaired`).

    Args:
        context: the run.
        profile: the profile of the run's model.
    """
    if not are_repaired(context):
        return profile
    ends = [group for group in profile.groups if group.choices[-1].removes_branch]
    trial, checkpoint = Trial(context, rounded=False), context.checkpoint
    measured: dict[str, GroupProfile] = {}
    for done, group in enumerate(ends):
        context.progress("removed branches", done, len(ends))
        if (key := f"removed branches/{group.name}") in checkpoint:
            nats = checkpoint.load(key)
        else:
            plan = without_branch(context, profile, group)
            losses = trial.losses(plan, heat=1.0, most=layers_to_repair(context, plan))
            nats = max(float(losses.mean()), LEAST)
            checkpoint.save(key, nats)
        removal = group.choices[-1].model_copy(update={"sensitivity": nats})
        measured[group.name] = group.model_copy(update={"choices": [*group.choices[:-1], removal]})
    context.progress("removed branches", len(ends), len(ends))
    return profile.model_copy(update={"groups": [measured.get(g.name, g) for g in profile.groups]})


def without_branch(context: Context, profile: Profile, end: GroupProfile) -> Plan:
    """The plan that removes one residual branch and changes nothing else.

    Args:
        context: the run.
        profile: its profile.
        end: the group that the removal of the branch is charged to.
    """
    groups = {group.name: group for group in profile.groups}
    gone, waiting = {end.name}, [end]
    while waiting:
        group = waiting.pop()
        for layer in profile.layers:
            before = groups.get(layer.input_group or "")
            if layer.output_group != group.name or before is None or before.name in gone:
                continue
            if before.choices[-1].keep == 0:
                gone.add(before.name)
                waiting.append(before)
    removed = {n: list(range(groups[n].size)) for n in gone}
    charged = {n: groups[n].choices[-1].sensitivity for n in gone}
    plan = unchanged(context)
    lost = {layer.name for layer in profile.layers if {layer.input_group, layer.output_group} & gone}
    return plan.model_copy(
        update={
            "groups": {
                n: g.model_copy(update={"removed": removed[n], "sensitivity": charged[n]}) if n in gone else g
                for n, g in plan.groups.items()
            },
            "layers": {
                n: layer.model_copy(update={"method": REMOVED}) if n in lost else layer
                for n, layer in plan.layers.items()
            },
        }
    )


def layers_to_repair(context: Context, plan: Plan) -> int:
    """How many of the layers behind a branch that a plan removes are repaired: fewer where they are wide."""
    gone = [layer.method == REMOVED for layer in plan.layers.values()]
    behind = [name for name, removed in list(zip(plan.layers, gone, strict=True))[gone.index(True) :] if not removed]
    widths = [context.compressible.layers[name].layer.geometry.features for name in behind[:REPAIRED]]
    return max(FEWEST, int(np.count_nonzero(np.cumsum(np.power(widths, 3.0)) <= WORK)))
