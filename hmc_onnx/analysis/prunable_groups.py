"""The channel groups of a model that can be pruned, and the reasons why others cannot be.

`layers`, in the functions below, holds the layer of each node that applies one, by the node's name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hmc_onnx.analysis.compressible import CompressibleLayer
from passes.channels import ChannelGroup, Channels, trace
from passes.core.declined import Declined, Why
from passes.graph.model import Model

__all__ = ["prunable_groups"]


def prunable_groups(
    model: Model,
    inputs: dict[str, tuple[int, ...]],
    layers: Mapping[str, CompressibleLayer],
    alone: Mapping[str, Declined],
) -> tuple[Channels, dict[str, Declined]]:
    """The channels of a model, and by name the reason why each refused group cannot be pruned.

    Prunable groups that one layer reads concatenated are joined. A grouped Conv loses whole groups if that is possible
    and there is more than one class to choose from. Otherwise it loses equally many outputs of each group, and keeps
    its inputs, because there is no repair for a part of each group.
    """
    channels = trace(model, inputs)
    split = _split(channels, layers)
    if split:
        by_group = trace(model, inputs, whole_groups=split)
        refused = _refused(by_group, layers, alone)
        fit = [g for g in by_group.groups if g.name not in refused and g.size > 1]
        whole = {str(s.node.name) for g in fit for s, _ in g.members("follows")} & split
        while True:
            channels = trace(model, inputs, whole_groups=whole)
            refused = _refused(channels, layers, alone)
            fit = [g for g in channels.groups if g.name not in refused and g.size > 1]
            in_vain = _split(channels, layers) - {str(s.node.name) for g in fit for s, _ in g.members("produces")}
            if not in_vain:
                break
            whole |= in_vain
    refused = _refused(channels, layers, alone)
    return channels.joined({g.name for g in channels.groups if g.name not in refused}), refused


def _split(channels: Channels, layers: Mapping[str, CompressibleLayer]) -> set[str]:
    """Names of the grouped Convs that lose equally many outputs of each group."""
    nodes = [slot.node for group in channels.groups for slot, _ in group.members("produces")]
    return {str(n.name) for n in nodes if n.name in layers and layers[n.name].grouped}


def _refused(
    channels: Channels, layers: Mapping[str, CompressibleLayer], alone: Mapping[str, Declined]
) -> dict[str, Declined]:
    """The groups that cannot be pruned, with the reasons, by name."""
    reasons = {g.name: g.declined or _unfit(g, layers, alone) for g in channels.groups}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    while True:
        fit = [g for g in channels.groups if g.name not in refused]
        prunable = np.zeros(channels.count, bool)
        for group in fit:
            prunable[np.concatenate(group.ids)] = True
        mixed = {g.name: name for g in fit if (name := _mixed_by(g, layers, prunable)) is not None}
        if not mixed:
            return refused
        for name, layer in mixed.items():
            said = f"the grouped Conv '{layer}' passes it on with channels that cannot be pruned"
            refused[name] = Declined(name, Why.GROUPED, said)


def _mixed_by(group: ChannelGroup, layers: Mapping[str, CompressibleLayer], prunable: np.ndarray) -> str | None:
    """Name of a grouped Conv that passes on a group's channels together with unprunable ones; None if there is none."""
    passed = [s for s, _ in group.members("follows") if s.node.name in layers and layers[s.node.name].grouped]
    return next((str(s.node.name) for s in passed if not prunable[s.ids].all()), None)


def _unfit(
    group: ChannelGroup, layers: Mapping[str, CompressibleLayer], alone: Mapping[str, Declined]
) -> Declined | None:
    """Why a traced group is refused, or None.

    Pruning it would change a layer that is left alone; or the least-squares repair lacks supported layers at both ends.
    """
    for slot in group.slots:
        if slot.node.name in alone:
            said = f"'{slot.node.name}' takes part, which is {alone[slot.node.name].reason}"
            return Declined(group.name, Why.CHOSEN, said)
    for slot, _ in [*group.members("produces"), *group.members("consumes")]:
        name = str(slot.node.name)
        if name not in layers:
            return Declined(group.name, Why.TIED, f"'{name}' takes part and is left as it is")
        if slot.role == "consumes" and layers[name].grouped:  # there is no repair for a part of each group
            said = f"the grouped Conv '{name}' would lose inputs of each of its groups, and is left as it is"
            return Declined(group.name, Why.GROUPED, said)
    return None
