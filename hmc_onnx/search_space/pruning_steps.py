"""How far a channel group may be pruned, so that each of its layers keeps a number of channels that pays.

Where stages are joined by shortcuts that pad with zeros, a layer carries only some of the group's classes. Classes that
the same layers carry are a cell; of each cell a multiple of the alignment is kept, and so of each layer. The alignment
counts channels: of classes of four channels each, as a GroupNormalization ties them, two make a multiple of 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from passes.channels import ChannelGroup

__all__ = ["Steps", "floors", "steps"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Shares of a group's channels that are kept.
SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class Steps:
    """The numbers of classes on offer.

    Attributes:
        cells: the classes of each.
        keeps: for each step, how many of each cell stay; from the most to the fewest.
    """

    cells: list[np.ndarray]
    keeps: list[tuple[int, ...]]

    @property
    def counts(self) -> list[int]:
        """How many classes go at each step."""
        return [sum(map(len, self.cells)) - sum(keep) for keep in self.keeps]

    def any(self, step: int) -> list[int]:
        """Classes that could go at a step: it is not said which, but how many of each cell."""
        gone = [cell[: len(cell) - keep] for cell, keep in zip(self.cells, self.keeps[step], strict=True)]
        return [int(c) for part in gone for c in part]


def steps(group: ChannelGroup, align: int, fine: bool = True) -> Steps:
    """The steps of a group. Not `fine`: every second share of its channels.

    Args:
        group: whose classes are to be kept or removed.
        align: of each cell a number of classes is kept that makes a multiple of so many channels in every layer.
        fine: whether all shares are on offer.
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


def floors(group: ChannelGroup) -> list[np.ndarray]:
    """Class arrays, one for each layer and each tensor of activations that carries the group, an entry a channel.

    Where an axis of activations has one entry for several channels, as within a GroupNormalization that is written with
    a Reshape, the entry is repeated.
    """
    ends = [classes for _, classes in [*group.members("produces"), *group.members("consumes")]]
    widths = _widths(group)
    width = np.gcd.reduce(widths, axis=0)
    parts = []
    for part in group.parts:
        own = part[part >= 0]
        entries = np.bincount(own, minlength=group.size)
        parts.append(np.repeat(own, np.maximum(width[own] // entries[own], 1)))
    return [*ends, *parts]


def _widths(group: ChannelGroup) -> np.ndarray:
    """How many channels each class has in each layer: (slots of layers, classes)."""
    own = [c for slot, c in zip(group.slots, group.classes, strict=True) if slot.node.op in LAYERS]
    return np.array([np.bincount(classes[classes >= 0], minlength=group.size) for classes in own])


def _unit(widths: np.ndarray, cell: np.ndarray, align: int) -> int:
    """How many classes of a cell make a multiple of `align` channels in every layer that carries them.

    Where a class is one channel, that is `align`. A class that a GroupNormalization or a grouped Conv ties is several.
    """
    carried = widths[:, cell]
    return align // math.gcd(align, int(np.gcd.reduce(carried[carried > 0])))


def _cells(group: ChannelGroup) -> list[np.ndarray]:
    carried = np.zeros((len(group.classes), group.size), bool)
    for row, classes in zip(carried, group.classes, strict=True):
        row[classes[classes >= 0]] = True
    _, cell = np.unique(carried, axis=1, return_inverse=True)
    return [np.flatnonzero(cell.reshape(-1) == c) for c in range(cell.max() + 1)]
