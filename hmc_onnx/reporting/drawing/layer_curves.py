"""The small pictures of each layer's sensitivity curves. All share one frame, so that they can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter

from hmc_onnx.records.report import PRUNING, CurvePoint, LayerReport
from hmc_onnx.reporting.drawing.svg import COLOURS, figure, nats_axis, style, svg

__all__ = ["FRAME", "KINDS", "LayerCurves"]

WIDTH, HEIGHT = 400, 230
# Name of the frame's symbol in the page.
FRAME = "layer-frame"
# The range of sensitivities that is drawn reaches down to this at most; what is below is drawn at the lower edge.
LEAST = 1e-6
# Colour, dashes, and words for the legend of each kind of curve.
KINDS: dict[str, tuple[str, Any, str]] = {
    PRUNING[0]: ("prune", (0, (4, 2)), "pruning the channels that it reads"),
    PRUNING[1]: ("prune", "-", "pruning the channels that it writes"),
    "svd": ("svd", "-", "decomposed: SVD"),
    "spatial": ("spatial", "-", "decomposed: spatial SVD"),
    "tucker": ("tucker", "-", "decomposed: Tucker-2"),
    "cp": ("cp", "-", "decomposed: CP"),
    "input": ("svd", (0, (4, 2)), "decomposed: SVD of its inputs"),
}


class LayerCurves:
    """Draws the curves of the layers of one report.

    Args:
        layers: all that will be drawn, which say what range the frame has to have.
    """

    def __init__(self, layers: Sequence[LayerReport]) -> None:
        points = [p.sensitivity for layer in layers for curve in layer.curves for p in curve.points]
        values = [max(v, LEAST) for v in points if v > 0] or [LEAST, 1.0]
        self._low = 10.0 ** math.floor(math.log10(min(values)))
        self._high = max(10.0 ** math.ceil(math.log10(max(values))), 10 * self._low)
        with style("layers"):
            self._drawn, self._axes = self._empty()  # made once, as making axes takes longer than drawing curves
            self._axes.set_axis_off()

    def frame(self) -> str:
        """The symbol that holds the axes of all the pictures."""
        with style("layers"):
            made, axes = self._empty()
            axes.set_xlabel("share kept (of MACs; for pruning, of channels)")
            axes.set_ylabel("sensitivity, nats")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
            inside = svg(made, "", within=True)
        return f'<symbol id="{FRAME}" viewBox="0 0 {WIDTH} {HEIGHT}">{inside}</symbol>'

    def draw(self, layer: LayerReport) -> str:
        """The SVG of one layer's curves, with a ring at each point that the plan takes."""
        axes = self._axes
        for artist in [*axes.lines, *axes.patches]:
            artist.remove()
        for curve in layer.curves:
            name, dashes, _ = KINDS.get(curve.kind, ("ink", "-", ""))
            colour = COLOURS[name]
            x, y = [p.share for p in curve.points], [self._height(p) for p in curve.points]
            line = Line2D(x, y, color=colour, linestyle=dashes, linewidth=1.5, clip_on=False)
            taken = [(p.share, self._height(p)) for p in curve.points if p.chosen]
            ring = [_dots(taken, COLOURS["ink"], 12), _dots(taken, COLOURS["surface"], 8.5)] if taken else []
            # added as they are, as `plot` would look at the limits of the axes anew each time
            for artist in (line, *ring, _dots(list(zip(x, y, strict=True)), colour, 4.5)):
                axes.add_artist(artist)
        return _within_frame(svg(self._drawn, "", within=True), f"Sensitivity curves of layer {layer.name}")

    def _empty(self) -> tuple[Any, Any]:
        made, axes = figure(WIDTH, HEIGHT, (52, 22, 40, 10))
        nats_axis(axes.yaxis, self._low, self._high)
        axes.set_xlim(0, 1)
        return made, axes

    def _height(self, point: CurvePoint) -> float:
        return min(max(point.sensitivity, self._low), self._high)


def _within_frame(inside: str, label: str) -> str:
    frame = f'<use href="#{FRAME}" width="{WIDTH}" height="{HEIGHT}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{frame}{inside}</svg>'


def _dots(places: Sequence[tuple[float, float]], colour: str, size: float) -> PathPatch:
    """A round dot at each place as one path of lines without length: far shorter than a marker for each."""
    path = Path([p for place in places for p in (place, place)], [Path.MOVETO, Path.LINETO] * len(places))
    return PathPatch(path, fill=False, edgecolor=colour, linewidth=size, capstyle="round", clip_on=False)
