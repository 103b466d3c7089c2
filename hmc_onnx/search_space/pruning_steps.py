"""Pruning steps: the numbers of channels that a group may keep, such that each layer keeps a multiple of `align`.

Where stages are joined by shortcuts that pad with zeros, a layer carries only some of the group's classes. The classes
that the same layers carry form a cell. Of each cell a multiple of the alignment is kept, and thus of each layer too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.channels import ChannelGroup

__all__ = ["Steps", "steps"]

# Shares of a group's channels that are on offer to be kept.
SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class Steps:
    """The numbers of classes on offer.

    Attributes:
        cells: the classes of each cell.
        keeps: for each step, how many classes of each cell stay; the steps go from the most to the fewest.
    """

    cells: list[np.ndarray]
    keeps: list[tuple[int, ...]]

    @property
    def counts(self) -> list[int]:
        """How many classes are removed at each step."""
        return [sum(map(len, self.cells)) - sum(keep) for keep in self.keeps]

    def any(self, step: int) -> list[int]:
        """Classes that could be removed at a step, the right number of each cell: for use where only sizes matter."""
        gone = [cell[: len(cell) - keep] for cell, keep in zip(self.cells, self.keeps[step], strict=True)]
        return [int(c) for part in gone for c in part]


def steps(group: ChannelGroup, align: int, fine: bool = True) -> Steps:
    """The steps of a group; without `fine`, only every second of `SHARES`."""
    cells = _cells(group)
    if min(map(len, cells)) < align:
        cells = [np.arange(group.size)]
    shares = SHARES if fine else SHARES[1::2]
    keeps = {tuple(max(align, int(len(cell) * share) // align * align) for cell in cells) for share in shares}
    fewer = {keep for keep in keeps if sum(keep) < group.size}
    return Steps(cells, sorted(fewer, key=sum, reverse=True))


def _cells(group: ChannelGroup) -> list[np.ndarray]:
    carried = np.zeros((len(group.classes), group.size), bool)
    for row, classes in zip(carried, group.classes, strict=True):
        row[classes[classes >= 0]] = True
    _, cell = np.unique(carried, axis=1, return_inverse=True)
    return [np.flatnonzero(cell.reshape(-1) == c) for c in range(cell.max() + 1)]
