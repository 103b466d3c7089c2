"""What each picture of the report shows, apart from how it is drawn."""

from __future__ import annotations

from typing import Literal

from passes.core.records import Frozen

__all__ = ["ClassPicture", "ClassRow", "Grouping", "GroupingPoint", "TradeOff", "TradeOffPoint"]


class TradeOffPoint(Frozen):
    """A network by its time and its accuracy.

    Attributes:
        name: in the picture.
        kind: the original, the original in the precision served, a network that a search visited, or the result.
        time: share of the original's time, and
        time_uncertainty: half-width of its 95 % interval.
        change: of the accuracy against the original, as a share of the images (-0.01 is one point less), and
        change_uncertainty: half-width of its 95 % interval, where known.
        detail: more on it, in words.
    """

    name: str
    kind: Literal["original", "quantised", "visited", "result"]
    time: float
    time_uncertainty: float = 0.0
    change: float
    change_uncertainty: float = 0.0
    detail: str = ""


class TradeOff(Frozen):
    """Accuracy over time. `measure` is what the accuracy is, in words; times are of a run of `batch` images."""

    measure: str
    batch: int
    points: list[TradeOffPoint]


class GroupingPoint(Frozen):
    """A layer by its two sensitivities, in nats; `bears` is its group, `layer` its place in the report."""

    name: str
    layer: int
    pruning: float
    lowrank: float
    bears: str


class Grouping(Frozen):
    """The layers for which both kinds were measured; `others` is the number of those for which only one was."""

    points: list[GroupingPoint]
    others: int


class ClassRow(Frozen):
    """A class with its accuracy before and after, 0 to 1, on `images` images."""

    name: str
    images: int
    before: float
    after: float


class ClassPicture(Frozen):
    """Classes from the one that lost most to the one that gained most; `left_out` is how many lie between."""

    rows: list[ClassRow]
    left_out: int
