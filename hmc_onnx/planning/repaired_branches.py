"""Sensitivities of removed residual branches, with the layers behind each of them repaired.

Where channels are removed or a layer is decomposed, the profile measures the network with the least-squares weights of
the layers concerned. A removed branch leaves no such layer: the profile has it replaced by its mean, and the layers
behind it as they are. These make up for most of it once they are repaired, and for a share that differs from branch to
branch (docs/experiments.md). So each branch is removed alone, the next few layers are repaired, and what is lost then
takes the place of what the profile has. Otherwise too few branches would be removed, and not the right ones.
"""

from __future__ import annotations

from hmc_onnx.execution.context import Context
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.planning.taken import LEAST
from hmc_onnx.planning.trial import MOST_TRIALS, Trial, most_trials
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import REMOVED, GroupProfile, Profile

__all__ = ["are_repaired", "with_repaired_branches", "without_branch"]

# Layers that are repaired behind a removed branch. With six, a ResNet-56 loses a tenth more than with all repaired.
REPAIRED = 6


def are_repaired(context: Context) -> bool:
    """Whether a run's branches are measured with repairs: it has some, is small, and has enough images for trials."""
    return bool(context.compressible.removable) and most_trials(context) == MOST_TRIALS


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
            losses = trial.losses(without_branch(context, profile, group), heat=1.0, most=REPAIRED)
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
