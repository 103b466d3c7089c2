"""HMC's grouping: layers sorted by the difference of their sensitivity to pruning and to low rank.

For a layer l and a share ρ of its MACs, S_lowrank(l, ρ) is interpolated from its measured decompositions, and
S_prune(l, ρ) from its channel groups, where a group's sensitivity is divided among its layers in proportion to their
MACs. D_l is the mean over a few ρ of (S_prune - S_lowrank) / (S_prune + S_lowrank), which lies in [-1, 1]. Near 1, low
rank costs the layer less accuracy; near -1, pruning does; in between it may get both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from hmc_onnx.records.profile import GroupProfile, LayerProfile, Profile

__all__ = ["BOTH_BELOW", "Bearing", "bearing", "differences", "sensitivities"]

Bearing = Literal["lowrank", "prune", "both", "keep"]

# The shares ρ of a layer's MACs; the page of a report names them.
SHARES = (0.7, 0.5, 0.35)
# If |D| is below this, both methods cost about the same: at 0.2, the sensitivities differ by a factor of 1.5 at most.
BOTH_BELOW = 0.2


def differences(profile: Profile) -> dict[str, float | None]:
    """D of each layer, by name; None for a layer without candidates.

    D is 1 for a layer that can only be decomposed, and -1 for a layer that can only be pruned.
    """
    groups = {g.name: g for g in profile.groups}
    layers = {layer.name: layer for layer in profile.layers}
    return {layer.name: _difference(layer, groups, layers) for layer in profile.layers}


def bearing(difference: float | None) -> Bearing:
    """The method that costs a layer with this D the least accuracy: low rank, pruning, both, or neither ("keep")."""
    if difference is None:
        return "keep"
    if abs(difference) < BOTH_BELOW:
        return "both"
    return "lowrank" if difference > 0 else "prune"


def sensitivities(profile: Profile) -> dict[str, tuple[float | None, float | None]]:
    """S_prune and S_lowrank of each layer by name, in nats: means over `SHARES`; None where there is no candidate."""
    groups = {g.name: g for g in profile.groups}
    layers = {layer.name: layer for layer in profile.layers}
    at_shares = {layer.name: _at_shares(layer, groups, layers) for layer in profile.layers}
    return {name: (_mean(prune), _mean(lowrank)) for name, (prune, lowrank) in at_shares.items()}


def _mean(values: list[float] | None) -> float | None:
    return None if values is None else float(np.mean(values))


def _difference(layer: LayerProfile, groups: dict[str, GroupProfile], layers: dict[str, LayerProfile]) -> float | None:
    prune, lowrank = _at_shares(layer, groups, layers)
    if prune is None or lowrank is None:
        return None if prune is lowrank else (-1.0 if lowrank is None else 1.0)
    values = [(p - r) / max(p + r, np.finfo(float).tiny) for p, r in zip(prune, lowrank, strict=True)]
    return float(np.mean(values))


def _at_shares(
    layer: LayerProfile, groups: dict[str, GroupProfile], layers: dict[str, LayerProfile]
) -> tuple[list[float] | None, list[float] | None]:
    """S_prune and S_lowrank at each of `SHARES`; None for a kind that has no candidate."""
    lowrank = [(c.macs / layer.macs, c.sensitivity) for c in layer.choices if c.inputs == c.outputs == 0 and c.rank]
    own = [groups[n] for n in (layer.input_group, layer.output_group) if n is not None]
    prune = [
        [(c.keep / g.size, c.sensitivity * _share(layer, g, layers)) for c in g.choices[1:] if c.keep]
        for g in own
        if any(0 < c.keep < g.size for c in g.choices)
    ]
    return (
        [min(_at(p, share) for p in prune) for share in SHARES] if prune else None,
        [_at(lowrank, share) for share in SHARES] if lowrank else None,
    )


def _share(layer: LayerProfile, group: GroupProfile, layers: dict[str, LayerProfile]) -> float:
    members = {*group.producers, *group.consumers}
    return layer.macs / sum(layers[n].macs for n in members)


def _at(points: Iterable[tuple[float, float]], share: float) -> float:
    """Sensitivity at a share of the MACs: linear between the points, and 0 at a share of 1."""
    best: dict[float, float] = {1.0: 0.0}
    for ratio, sensitivity in points:
        best[ratio] = min(sensitivity, best.get(ratio, np.inf))
    ratios = sorted(best)
    return float(np.interp(share, ratios, [best[r] for r in ratios]))
