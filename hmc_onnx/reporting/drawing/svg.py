"""What all pictures share: how a matplotlib figure becomes a small SVG within a page, in the page's own colours.

Colours are set by the names of `COLOURS`, which are the page's CSS variables, so that a picture follows the page from
light to dark. The same figure gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

__all__ = ["COLOURS", "figure", "nats_axis", "style", "svg"]

# matplotlib wants numbers for colours: each name has one that occurs nowhere else, and that `svg` replaces.
_NAMES = (
    *("ink", "muted", "line", "surface", "band", "prune", "lowrank", "both", "keep", "good", "bad"),
    *("svd", "spatial", "tucker", "cp"),
)
COLOURS = {name: f"#{10 + i:02x}fe{20 + i:02x}" for i, name in enumerate(_NAMES)}
FONT_SIZE = 11.0
_FONT = re.compile(r"font: ([^'\";]*?)([\d.]+)px [^;\"]*")
_LONG = re.compile(r"-?\d+\.\d{2,}")
_TAG = re.compile(r"<[^>]*>")
_ID = re.compile(r' id="([^"]*)"')


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Settings of matplotlib for one picture; `salt` makes the names within its SVG its own in the page."""
    own: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": FONT_SIZE,
        "axes.edgecolor": COLOURS["line"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": COLOURS["line"],
        "grid.linewidth": 0.8,
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["line"],
        "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.major.pad": 7,
        "ytick.major.pad": 6,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "path.simplify": True,
    }
    # the user's own settings of matplotlib, which change what it draws, are left aside
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(own):
        yield


def figure(width: float, height: float, margins: tuple[float, float, float, float]) -> tuple[Figure, Any]:
    """A figure with one pair of axes, within `style`.

    Args:
        width, height: in points, which are the pixels of the SVG's own scale.
        margins: left, right, bottom and top, in points.
    """
    made = Figure(figsize=(width / 72, height / 72), dpi=72)
    left, right, bottom, top = margins
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    return made, made.add_axes(box)


def nats_axis(axis: Any, floor: float, top: float) -> None:
    """A logarithmic axis of sensitivities with a label at each power of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (floor, top)})
    axis.set_major_formatter(FuncFormatter(_power))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _power(value: float, _: object) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}".replace("e-0", "e-")


def svg(drawn: Figure, label: str, titles: Mapping[str, str] | None = None, within: bool = False) -> str:
    """A figure as SVG.

    Args:
        drawn: the figure, within `style`.
        label: what it shows, for those who cannot see it.
        titles: text that is shown over a part, by the part's gid.
        within: leave out the outer element, to put the picture into another.
    """
    packed = StringIO()
    canvas: Any = FigureCanvasSVG(drawn)
    canvas.print_svg(packed, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = packed.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=.*?</style>", "", text, flags=re.DOTALL)  # the page has these rules
    for gid, title in (titles or {}).items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>", 1)
    text = _FONT.sub(lambda found: f"font-size: {float(found[2]):g}px", text)
    text = _TAG.sub(lambda tag: _shortened(tag[0]), text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    used = set(re.findall(r"#([\w-]+)", text))
    text = _ID.sub(lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r">\s+<", "><", text).replace("xlink:href", "href")
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    inside = text[text.index(">") + 1 : text.rindex("</svg>")]
    if within:
        return inside
    return f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _shortened(tag: str) -> str:
    """A tag with coordinates of one decimal and no needless spaces."""
    rounded = _LONG.sub(lambda found: f"{float(found[0]):.1f}".replace("-0.0", "0.0").removesuffix(".0"), tag)
    return re.sub(r"(?<=[;:]) ", "", rounded)
