"""The picture of accuracy over time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter

from hmc_onnx.records.pictures import TradeOff, TradeOffPoint
from hmc_onnx.reporting.drawing.svg import COLOURS, figure, style, svg

__all__ = ["LINE", "draw_trade_off", "names_above"]

WIDTH, HEIGHT = 460, 330
MARKERS = {"original": ("s", "muted"), "quantised": ("D", "both"), "visited": ("o", "lowrank"), "result": ("o", "good")}
# Labels stand to the right of a point up to this share of the time, else to its left.
TURN = 0.7
# Height of a line of text, in typographic points; and share of the time within which two names may cover each other.
LINE, NEAR = 14, 0.35


def names_above(points: Sequence[TradeOffPoint], line: float) -> list[tuple[TradeOffPoint, float]]:
    """The points that are named, with how far up each name goes, in typographic points.

    A name that would cover another on the same side goes above it. `line` is the height of a line, in points of
    accuracy.
    """
    placed: list[tuple[TradeOffPoint, float]] = []
    for p in sorted((p for p in points if p.kind != "visited"), key=lambda p: p.change):
        at = 100 * p.change
        for other, up in placed:
            below = 100 * other.change + up / LINE * line
            if (other.time <= TURN) == (p.time <= TURN) and abs(other.time - p.time) < NEAR and at < below + line:
                at = below + line
        placed.append((p, (at - 100 * p.change) / line * LINE))
    return placed


def draw_trade_off(shown: TradeOff) -> str:
    """The SVG: time to the right, accuracy upwards, each network a point."""
    with style("trade-off"):
        made, axes = figure(WIDTH, HEIGHT, (56, 12, 44, 14))
        visited = sorted((p for p in shown.points if p.kind == "visited"), key=lambda p: p.time)
        if len(visited) > 1:
            line = [p.time for p in visited], [100 * p.change for p in visited]
            axes.plot(*line, color=COLOURS["lowrank"], linewidth=1, alpha=0.5)
        titles = {}
        for i, p in enumerate(shown.points):
            marker, colour = MARKERS[p.kind]
            spread = {"xerr": p.time_uncertainty or None, "yerr": 100 * p.change_uncertainty or None}
            axes.errorbar(
                p.time, 100 * p.change, **spread, fmt="none", ecolor=COLOURS[colour], elinewidth=1, alpha=0.45
            )
            size = 11 if p.kind == "result" else 6
            gid = f"point-{i}"
            axes.plot(p.time, 100 * p.change, marker, color=COLOURS[colour], markersize=size, gid=gid)
            change = f"{100 * p.change:+.2f} points" if p.change else ""
            titles[gid] = f"{p.name}: {', '.join(t for t in (f'{p.time:.3f} of the time', change, p.detail) if t)}"
        times = [p.time for p in shown.points]
        changes = [100 * (p.change + sign * p.change_uncertainty) for p in shown.points for sign in (-1, 1)]
        room = max(0.12 * (max(changes) - min(changes)), 0.25)
        low, high = min(changes) - room, max(changes) + room
        axes.set(xlim=(0, max(1.05, max(times) + 0.05)), ylim=(low, high))
        for p, up in names_above(shown.points, (high - low) * LINE / HEIGHT):
            right = p.time <= TURN
            axes.annotate(
                p.name,
                (p.time, 100 * p.change),
                (11 if right else -10, up),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontweight="bold" if p.kind == "result" else "normal",
            )
        axes.set_xlabel(
            f"share of the original's time, {shown.batch} {'image' if shown.batch == 1 else 'images'} a run"
        )
        axes.set_ylabel(f"change of {shown.measure}, points")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        return svg(made, "Accuracy over time of each network that was measured", titles)
