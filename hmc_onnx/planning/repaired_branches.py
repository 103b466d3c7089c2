"""What removed residual branches lose with the layers behind them repaired: each alone, and several of a stage.

Where channels are removed or a layer is decomposed, the profile measures the network with the least-squares weights of
the layers concerned. A removed branch leaves no such layer: the profile has it replaced by its mean, and the layers
behind it as they are. These make up for most of it once they are repaired, and for a share that differs from branch to
branch (docs/experiments.md). So each branch is removed alone, the next few layers are repaired, and what is lost then
takes the place of what the profile has.

The branches of a stage refine one sum in turns, and the others make up for less when several are gone. So some of each
stage are removed together, which gives the correlation of their errors (`hmc_onnx/planning/joint_loss.py`). That of one
stage is uncertain by about as much as it is, on so few images, so all have the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from hmc_onnx.execution.context import Context
from hmc_onnx.planning.joint_loss import correlation
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.planning.taken import LEAST
from hmc_onnx.planning.trial import MOST_TRIALS, Trial, enough_images, most_trials
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import REMOVED, GroupProfile, Profile, Stage

__all__ = ["are_repaired", "layers_to_repair", "stages", "with_repaired_branches", "without_branches"]

# Layers that are repaired behind a removed branch. With six, a ResNet-56 loses a tenth more than with all repaired.
REPAIRED = 6
# Their work at most, as the sum of the cubes of their numbers of inputs, that of some seconds; but two layers at least.
WORK, FEWEST = 1e11, 2
# Branches of a stage that are removed together at most; half of the stage where that is fewer, but two at least.
TOGETHER = 4


def are_repaired(context: Context) -> bool:
    """Whether a run's branches are measured with repairs.

    It has to have some, and enough images for them. Repairs of a ResNet-18's branches take half a minute, and of a
    ResNet-50's two minutes, so in a search that is to be quick they are measured only where all trials are made.
    """
    quick_enough = context.settings.fine or most_trials(context) == MOST_TRIALS
    return bool(context.compressible.removable) and enough_images(context) and quick_enough


def with_repaired_branches(context: Context, profile: Profile) -> Profile:
    """A profile whose removed branches are measured with the layers behind them repaired, and together, by stage.

    The profile is returned as it is where they are not to be (`are_repaired`).

    Args:
        context: the run.
        profile: the profile of the run's model.
    """
    if not are_repaired(context):
        return profile
    ends = stages(context, profile)
    several = [stage for stage in ends if len(stage) > 1]
    lost = _measure(context, profile, ends, sum(map(len, ends)) + len(several))
    nats = {group.name: lost([group]) for stage in ends for group in stage}
    own = []
    for stage in several:
        some = sorted(stage, key=lambda group: nats[group.name])[: min(TOGETHER, max(len(stage) // 2, 2))]
        own.append(correlation(np.array([nats[group.name] for group in some]), lost(some)))
    update = {
        "groups": [_removed_at(group, nats[group.name]) if group.name in nats else group for group in profile.groups],
        "stages": [Stage(branches=[group.name for group in s], correlation=float(np.mean(own))) for s in several],
    }
    return profile.model_copy(update=update)


def stages(context: Context, profile: Profile) -> list[list[GroupProfile]]:
    """The groups that removed branches are charged to, by stage: by the shape of the sum that they add to."""
    found: dict[tuple[int, int], list[GroupProfile]] = {}
    for group in profile.groups:
        if group.choices[-1].removes_branch:
            last = context.compressible.layers[group.consumers[0]]
            found.setdefault((last.layer.geometry.outputs, last.maps), []).append(group)
    return list(found.values())


def _measure(
    context: Context, profile: Profile, ends: Sequence[Sequence[GroupProfile]], steps: int
) -> Callable[[Sequence[GroupProfile]], float]:
    """Tells what branches, given by the groups they are charged to, lose together; each answer is one of `steps`.

    `ends` are the branches of each stage.
    """
    nodes = context.normal.graph.nodes
    places = {n.name: at for at, n in enumerate(nodes)}

    def begins(plan: Plan) -> gs.Node:
        """The first layer that a plan removes."""
        return nodes[min(places[name] for name, layer in plan.layers.items() if layer.method == REMOVED)]

    firsts = {begins(without_branches(context, profile, [e])).name for stage in ends for e in stage}
    stops = list(dict.fromkeys(nodes[at].inputs[0].name for at in sorted(map(places.__getitem__, firsts))))
    trial, checkpoint, done = Trial(context, rounded=False, stops=stops), context.checkpoint, 0

    def lost(ends: Sequence[GroupProfile]) -> float:
        nonlocal done
        context.progress("removed branches", done, steps)
        if (key := f"removed branches/{' '.join(group.name for group in ends)}") in checkpoint:
            nats: float = checkpoint.load(key)
        else:
            plan = without_branches(context, profile, ends)
            behind = begins(plan).inputs[0].name
            losses = trial.losses(plan, heat=1.0, most=layers_to_repair(context, plan), behind=behind)
            nats = max(float(losses.mean()), LEAST)
            checkpoint.save(key, nats)
        done += 1
        context.progress("removed branches", done, steps)
        return nats

    return lost


def _removed_at(group: GroupProfile, nats: float) -> GroupProfile:
    removal = group.choices[-1].model_copy(update={"sensitivity": nats})
    return group.model_copy(update={"choices": [*group.choices[:-1], removal]})


def without_branches(context: Context, profile: Profile, ends: Sequence[GroupProfile]) -> Plan:
    """The plan that removes some residual branches and changes nothing else.

    Args:
        context: the run.
        profile: its profile.
        ends: the groups that the removals of the branches are charged to.
    """
    groups = {group.name: group for group in profile.groups}
    gone, waiting = {end.name for end in ends}, list(ends)
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
    """How many layers are repaired: those between the branches that a plan removes, and the next few behind them.

    Of the next few, there are fewer where they are wide.
    """
    names = list(plan.layers)
    gone = [at for at, name in enumerate(names) if plan.layers[name].method == REMOVED]
    between = gone[-1] + 1 - gone[0] - len(gone)
    behind = names[gone[-1] + 1 :][:REPAIRED]
    widths = [context.compressible.layers[name].layer.geometry.features for name in behind]
    return between + max(FEWEST, int(np.count_nonzero(np.cumsum(np.power(widths, 3.0)) <= WORK)))
