"""Strategies: which choices of the integer program each of them allows.

HMC gives each layer one method or both ("hmc"). NaHC gives each the one that it bears best, AHC gives each both or
neither (Yang et al., PLOS ONE 18(10), 2023). "prune" and "lowrank" know one method only.
"""

from __future__ import annotations

from collections.abc import Callable

from hmc_onnx.planning.hmc_groups import differences
from hmc_onnx.records.goal import Strategy
from hmc_onnx.records.profile import KEEP, REMOVED, GroupProfile, LayerChoice, LayerProfile, Profile

__all__ = ["Allowed", "allowed"]

Allowed = Callable[[LayerProfile, LayerChoice], bool]


def allowed(profile: Profile, strategy: Strategy) -> Allowed:
    """A function that says whether a strategy allows a layer's choice."""
    if strategy == "hmc":
        return lambda layer, c: True
    if strategy == "prune":
        return lambda layer, c: c.method in (KEEP, REMOVED)
    if strategy == "lowrank":
        return lambda layer, c: c.inputs == c.outputs == 0
    if strategy == "ahc":  # both methods or neither; low rank alone for a layer without prunable groups

        def both_or_neither(layer: LayerProfile, c: LayerChoice) -> bool:
            if layer.input_group is None and layer.output_group is None:
                return True
            return (c.inputs == c.outputs == 0) == (c.method == KEEP)

        return both_or_neither
    difference = differences(profile)
    pruned = {
        g.name for g in profile.groups if sum((difference[n] or 0.0) * m for n, m in _macs(g, profile).items()) < 0
    }

    def one_method(layer: LayerProfile, c: LayerChoice) -> bool:
        if {layer.input_group, layer.output_group} & pruned:
            ends = ((layer.input_group, c.inputs), (layer.output_group, c.outputs))
            return c.method in (KEEP, REMOVED) and all(i == 0 or g in pruned for g, i in ends)
        return c.inputs == c.outputs == 0

    return one_method


def _macs(group: GroupProfile, profile: Profile) -> dict[str, int]:
    members = {*group.producers, *group.consumers}
    return {layer.name: layer.macs for layer in profile.layers if layer.name in members}
