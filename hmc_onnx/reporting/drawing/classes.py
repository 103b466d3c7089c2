"""The picture of each class's accuracy before and after."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter

from hmc_onnx.records.pictures import ClassPicture
from hmc_onnx.reporting.drawing.svg import COLOURS, figure, style, svg

__all__ = ["draw_classes"]

WIDTH, ROW = 460, 21
# Letters of a class's name that are shown.
LETTERS = 18


def draw_classes(shown: ClassPicture) -> str:
    """The SVG: a row for each class, with a line from the accuracy before to that after."""
    rows = shown.rows
    names = [row.name if len(row.name) <= LETTERS else f"{row.name[: LETTERS - 1]}…" for row in rows]
    with style("classes"):
        left = 18 + 6 * max(len(name) for name in names)
        made, axes = figure(WIDTH, ROW * len(rows) + 52, (left, 54, 40, 10))
        titles = {}
        for i, row in enumerate(rows):
            before, after = 100 * row.before, 100 * row.after
            change = after - before
            colour = COLOURS["muted" if not change else "good" if change > 0 else "bad"]
            gid = f"class-{i}"
            axes.plot([before, after], [i, i], color=colour, linewidth=2.5, solid_capstyle="butt", gid=gid)
            titles[gid] = f"{row.name}: {before:.1f} % before, {after:.1f} % after, {row.images} images"
            axes.plot(
                before, i, "o", markersize=7, markerfacecolor=COLOURS["surface"], markeredgecolor=COLOURS["muted"]
            )
            axes.plot(after, i, "o", markersize=7, color=colour)
            right = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "color": colour}
            axes.text(1 + 48 / (WIDTH - left - 54), i, f"{change:+.1f}".replace("+0.0", "0.0"), **right)
        lowest = 100 * min(min(row.before, row.after) for row in rows)
        axes.set(xlim=(max(0.0, 10 * (lowest // 10) - 2), 102), ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), names)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("accuracy: ring before, dot after; right: change in points")
        return svg(made, "Accuracy of each class before and after", titles)
