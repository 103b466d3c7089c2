"""The report of a run as one HTML file that needs nothing else: pictures, styles and scripts are within it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hmc_onnx.planning.hmc_groups import SHARES
from hmc_onnx.records.comparison import BUSY, Timing
from hmc_onnx.records.report import LayerReport, RunReport
from hmc_onnx.reporting.drawing.classes import draw_classes
from hmc_onnx.reporting.drawing.grouping import draw_grouping
from hmc_onnx.reporting.drawing.layer_curves import KINDS, LayerCurves
from hmc_onnx.reporting.drawing.trade_off import draw_trade_off
from hmc_onnx.reporting.pictures import class_name, class_picture, grouping, served_timing, trade_off
from passes.core.atomic import write_atomically

__all__ = ["page", "write_page"]

# Rows of the table of layers that are shown at first; a button shows the others.
FIRST_ROWS = 60
DRAWN_BY: dict[str, Callable[[Any], str]] = {
    "trade_off": draw_trade_off,
    "grouping": draw_grouping,
    "classes": draw_classes,
}
BEARS = {"prune": "pruning", "lowrank": "low rank", "both": "both alike", "keep": "none on offer"}


def write_page(report: RunReport, path: str | os.PathLike[str]) -> None:
    """Write the page atomically; raises OutputError."""
    write_atomically(path, page(report).encode())


def page(report: RunReport) -> str:
    """The page; the same report gives the same text."""
    shown = {"trade_off": trade_off(report), "grouping": grouping(report), "classes": class_picture(report)}
    drawn = {name: None if record is None else Markup(DRAWN_BY[name](record)) for name, record in shown.items()}
    with_curves = [layer for layer in report.layers if layer.curves]
    curves = LayerCurves(with_curves)
    return _template().render(
        report=report,
        timing=served_timing(report),
        shown=shown,
        drawn=drawn,
        frame=Markup(curves.frame()) if with_curves else "",
        curves={layer.name: Markup(curves.draw(layer)) for layer in with_curves},
        kinds={name: (colour, dashes != "-", words) for name, (colour, dashes, words) in KINDS.items()},
        first_rows=FIRST_ROWS,
        busy=BUSY,
        shares=", ".join(f"{share:.0%}" for share in SHARES).replace("%", " %"),
    )


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("hmc_onnx.reporting", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "bytes": lambda value: f"{_count(value)}{'' if value >= 1e3 else ' '}B",
        "ms": lambda value: f"{value:.{1 if value >= 10 else 2}f} ms",
        "percent": lambda value: f"{value:.1%}".replace("%", " %"),
        "points": lambda value: f"{100 * value:+.2f}".replace("-", "−"),
        "bears": lambda name: BEARS.get(name, name),
        "breakable": _breakable,
        "done": _done,
        "state": _state,
        "class_of": lambda label, changes: "–" if label is None else class_name(changes, label),
    }
    environment.globals |= {"alone_at": _alone_at, "file": _file}
    return environment.get_template("run.html.j2")


def _file(name: str) -> Markup:
    """A file beside the template, as it is."""
    return Markup((Path(__file__).parent / "template" / name).read_text(encoding="utf-8"))


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line behind each of its parts."""
    return Markup("<wbr>").join(re.split(r"(?<=[/.:])(?=[^/.:])", name))


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _state(layer: LayerReport) -> str:
    """The kind of change, by which the table is filtered."""
    if layer.removed:
        return "removed"
    both = layer.pruned and layer.decomposed
    return "both" if both else "pruned" if layer.pruned else "decomposed" if layer.decomposed else "kept"


def _done(layer: LayerReport) -> str:
    """What was done to a layer, in a few words."""
    if layer.removed:
        return "removed"
    parts = ["pruned"] if layer.pruned else []
    if layer.decomposed:
        parts.append(f"{layer.method}, rank {layer.rank}")
    return (" + ".join(parts) or "kept") + (", in float32" if layer.in_float else "")


def _alone_at(report: RunReport, timing: Timing) -> Timing | None:
    """The time of the original in the precision served, at the batch of another time."""
    if report.unchanged is None:
        return None
    return next((t for t in report.unchanged.timings if t.batch == timing.batch), None)
