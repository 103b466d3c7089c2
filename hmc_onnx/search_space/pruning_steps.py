"""Pruning steps: the numbers of channels that a group may keep, such that each layer keeps a multiple of `align`.

A class is a set of channels that are removed together; usually it is one channel. If shortcuts that pad with zeros join
stages of different widths, a layer carries only some of the group's classes. The classes that the same layers carry
form a cell. Each cell keeps a multiple of the alignment, and so does each layer.

The alignment counts channels: if a GroupNormalization ties four channels to a class, two classes make 8 channels. For a
grouped Conv that loses whole groups, it counts groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from passes.channels import ChannelGroup

__all__ = ["Steps", "carried", "steps"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Shares of a group's channels that the steps keep.
SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class Steps:
    """The numbers of classes that a group may keep.

    Attributes:
        cells: the classes of each cell, int arrays.
        keeps: for each step, how many classes of each cell stay; from the most classes to the fewest.
    """

    cells: list[np.ndarray]
    keeps: list[tuple[int, ...]]

    @property
    def counts(self) -> list[int]:
        """The number of classes that are removed at each step."""
        return [sum(map(len, self.cells)) - sum(keep) for keep in self.keeps]

    def any(self, step: int) -> list[int]:
        """Arbitrary classes of the number that a step removes from each cell, for use where only sizes matter."""
        gone = [cell[: len(cell) - keep] for cell, keep in zip(self.cells, self.keeps[step], strict=True)]
        return [int(c) for part in gone for c in part]


def steps(group: ChannelGroup, align: int, fine: bool = True) -> Steps:
    """The steps of a group.

    Args:
        group: the channel group.
        align: each cell keeps so many classes that every layer has a multiple of this number of channels.
        fine: whether to use all of `SHARES`; else every second one.
    """
    widths = _widths(group)
    cells = _cells(group)
    units = [_unit(widths, cell, align) for cell in cells]
    if any(len(cell) < unit for cell, unit in zip(cells, units, strict=True)):
        cells = [np.arange(group.size)]
        units = [_unit(widths, cells[0], align)]
    shares = SHARES if fine else SHARES[1::2]
    keeps = {
        tuple(max(unit, int(len(cell) * share) // unit * unit) for cell, unit in zip(cells, units, strict=True))
        for share in shares
    }
    fewer = {keep for keep in keeps if sum(keep) < group.size}
    return Steps(cells, sorted(fewer, key=sum, reverse=True))


def carried(group: ChannelGroup) -> list[np.ndarray]:
    """The class of each channel, int, for each layer and each activation tensor that carries the group.

    An axis of an activation tensor may have one entry for several channels, for example inside a GroupNormalization
    that is exported with Reshapes. Such an entry is repeated for each channel.
    """
    ends = [classes for _, classes in [*group.members("produces"), *group.members("consumes")]]
    width = np.gcd.reduce(_widths(group), axis=0)
    parts = []
    for part in group.parts:
        own = part[part >= 0]
        entries = np.bincount(own, minlength=group.size)
        parts.append(np.repeat(own, np.maximum(width[own] // entries[own], 1)))
    return [*ends, *parts]


def _widths(group: ChannelGroup) -> np.ndarray:
    """Number of channels (of groups, in a grouped Conv) that each class has in each layer, int (slots, classes)."""
    found = []
    for slot, classes in zip(group.slots, group.classes, strict=True):
        if slot.node.op in LAYERS:
            own = classes
            if slot.role == "follows" and slot.index == 1:  # the weight of a grouped Conv that loses whole groups
                own = classes[:: len(classes) // slot.node.attrs["group"]]
            found.append(np.bincount(own[own >= 0], minlength=group.size))
    return np.array(found)


def _unit(widths: np.ndarray, cell: np.ndarray, align: int) -> int:
    """The number of classes of a cell that make a multiple of `align` channels in every layer that carries them.

    It is `align` if each class is one channel, and smaller if a GroupNormalization ties several channels to a class.
    """
    of_cell = widths[:, cell]
    return align // math.gcd(align, int(np.gcd.reduce(of_cell[of_cell > 0])))


def _cells(group: ChannelGroup) -> list[np.ndarray]:
    carried = np.zeros((len(group.classes), group.size), bool)
    for row, classes in zip(carried, group.classes, strict=True):
        row[classes[classes >= 0]] = True
    _, cell = np.unique(carried, axis=1, return_inverse=True)
    return [np.flatnonzero(cell.reshape(-1) == c) for c in range(cell.max() + 1)]
