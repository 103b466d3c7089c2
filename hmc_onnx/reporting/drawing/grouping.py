"""The picture of HMC's grouping: each layer by its sensitivities to pruning and to low rank."""

from __future__ import annotations

import math

from hmc_onnx.planning.hmc_groups import BOTH_BELOW
from hmc_onnx.records.pictures import Grouping
from hmc_onnx.reporting.drawing.svg import COLOURS, figure, nats_axis, style, svg

__all__ = ["draw_grouping"]

WIDTH, HEIGHT = 460, 330
# Sensitivities below this are drawn at it: differences there are noise.
LEAST = 1e-6


def draw_grouping(shown: Grouping) -> str:
    """The SVG: pruning to the right, low rank upwards, both logarithmic, a point for each layer that leads to it."""
    with style("grouping"):
        made, axes = figure(WIDTH, HEIGHT, (56, 14, 44, 14))
        values = [max(v, LEAST) for p in shown.points for v in (p.pruning, p.lowrank)]
        low, high = (10 ** math.floor(math.log10(min(values) / 1.2)), 10 ** math.ceil(math.log10(max(values) * 1.2)))
        for axis in (axes.xaxis, axes.yaxis):
            nats_axis(axis, low, high)
        apart = (1 + BOTH_BELOW) / (1 - BOTH_BELOW)
        ends = [low, high]
        axes.fill_between(
            ends, [e / apart for e in ends], [e * apart for e in ends], color=COLOURS["band"], linewidth=0
        )
        axes.text(
            0.03, 0.96, "pruning costs less", transform=axes.transAxes, va="top", color=COLOURS["prune"], zorder=0
        )
        axes.text(
            0.97, 0.04, "low rank costs less", transform=axes.transAxes, ha="right", color=COLOURS["lowrank"], zorder=0
        )
        titles = {}
        for p in shown.points:
            gid = f"layer-point-{p.layer}"
            place = max(p.pruning, LEAST), max(p.lowrank, LEAST)
            axes.plot(*place, "o", color=COLOURS[p.bears], markersize=6, alpha=0.85, gid=gid)
            titles[gid] = f"{p.name}: pruning {p.pruning:.1e}, low rank {p.lowrank:.1e} nats"
        axes.set_xlabel("sensitivity to pruning, nats")
        axes.set_ylabel("sensitivity to low rank, nats")
        return svg(made, "Layers by their sensitivity to pruning and to low rank", titles)
