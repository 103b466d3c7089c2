"""Which channels to remove: backward elimination by the least-squares error of the layers that read them.

Let a consumer be y = B x with second moment M of x, and P = M⁻¹. Removing the features F of a channel, and solving B
again for the features that stay, adds the error tr(B_F (P_FF)⁻¹ B_Fᵀ). The updates are P ← P - P_:F (P_FF)⁻¹ P_F: and
B ← B - B_F (P_FF)⁻¹ P_F:. (This is Hassibi & Stork's optimal brain surgeon, NIPS 1992, for a block of inputs of a
linear layer.) The score of a channel that several layers read is the sum of their errors, each as a share of its
layer's own response.

In a large group, several channels are scored and then removed together, because the update of P is bound by memory
bandwidth and takes the same time for one channel as for several. With fewer than 2 `LOTS` channels, one is removed at a
time.

A class is a set of channels that are removed together; usually it is one channel (see `passes.channels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmc_onnx.search_space.pruning_steps import Steps
from passes.core.linear_algebra import damped, inverse
from passes.core.shelf import MEMORY, Kept, Shelf

__all__ = ["Consumer", "Elimination", "Floors", "eliminate"]

# A group is eliminated in about this many steps; 1 / LOTS of its channels are removed in each.
LOTS = 128
# P is updated so many rows at a time, so that what is subtracted stays in the processor's cache; and it is made smaller
# where no more than this share of its features is left.
ROWS, SMALLER = 64, 0.8


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the channels of the group.

    Attributes:
        weight: its weight, (O, I, *kernel), float.
        moment: centred second moment of its patches, (n, n) with n = I times the kernel's size, float64.
        classes: class of each input channel, int (I,); -1 for a channel that cannot be removed.
    """

    weight: Kept
    moment: Kept
    classes: np.ndarray


@dataclass(frozen=True)
class Elimination:
    """The result of an elimination.

    Attributes:
        order: the removed classes in the order of removal, int (removals,).
        weights: for each requested number m of removals, the repaired weight of every consumer after the first m
            removals, float32 (O, I, *kernel), with zeros for removed channels.
    """

    order: np.ndarray
    weights: dict[int, list[Kept]]


@dataclass(frozen=True)
class Floors:
    """Lower bounds on the channels that stay.

    Attributes:
        carried: for each parameter axis and each tensor that carries the classes, the class of each of its channels.
        least: number of channels that must stay in each of these.
    """

    carried: Sequence[np.ndarray] = ()
    least: int = 1


def eliminate(
    consumers: Sequence[Consumer],
    size: int,
    counts: Sequence[int],
    floors: Floors | None = None,
    kept: Steps | None = None,
    shelf: Shelf = MEMORY,
) -> Elimination:
    """Remove classes step by step, always those that add the least error.

    Args:
        consumers: the layers that read the group; at least one.
        size: number of classes.
        counts: numbers of removals at which to record the weights, in ascending order.
        floors: lower bounds on the channels that stay; default: none.
        kept: for each count, how many classes of each cell stay; default: any classes may be removed.
        shelf: where arrays as large as the weights are stored.

    Returns:
        As many removals as the largest count, or fewer if the floors do not allow more.
    """
    states = [_State(c, size, shelf) for c in consumers]
    alive = np.ones(size, bool)
    floors = floors or Floors()
    entries = [np.bincount(f[f >= 0], minlength=size) for f in floors.carried]
    left = [int(e.sum()) for e in entries]
    order: list[int] = []
    weights: dict[int, list[Kept]] = {}
    kept = kept or Steps([np.arange(size)], [(size - count,) for count in counts])
    owner = np.empty(size, int)
    for i, cell in enumerate(kept.cells):
        owner[cell] = i
    while len(order) < max(counts, default=0):
        scores = sum(state.scores(alive) for state in states)
        lot: list[int] = []
        step = next(i for i, c in enumerate(counts) if c > len(order))
        most = min(max(1, size // LOTS), counts[step] - len(order))
        spare = [int(alive[cell].sum()) - keep for cell, keep in zip(kept.cells, kept.keeps[step], strict=True)]
        for c in np.argsort(np.where(alive, scores, math.inf), kind="stable")[: alive.sum()]:
            if len(lot) == most:
                break
            if not spare[owner[c]]:
                continue
            if all(n - e[c] >= (floors.least if e[c] else 0) for e, n in zip(entries, left, strict=True)):
                lot.append(int(c))
                spare[owner[c]] -= 1
                left = [n - int(e[c]) for e, n in zip(entries, left, strict=True)]
        if not lot:
            break
        for state in states:
            state.remove(lot)
        alive[lot] = False
        order.extend(lot)
        if len(order) in counts:
            weights[len(order)] = [state.weight() for state in states]
    for state in states:
        state.drop()
    return Elimination(np.array(order, dtype=int), weights)


class _State:
    """P and B of one consumer during the elimination; both are on the shelf, as they may be too large for memory.

    P holds the features that stay and, until it is made smaller, some that have gone. `_place` is where each feature
    is in it.
    """

    def __init__(self, consumer: Consumer, size: int, shelf: Shelf) -> None:
        weight, moment = consumer.weight.array, consumer.moment.array
        self.shape, self._shelf = weight.shape, shelf
        b = weight.reshape(len(weight), -1).astype(np.float64)
        self.scale = 1 / max(np.einsum("on,on->", b @ moment, b), np.finfo(float).tiny)
        self._b, self._p = shelf.keep(b), shelf.keep(inverse(damped(moment, 1e-6)))
        k = math.prod(self.shape[2:])
        channels = [np.flatnonzero(consumer.classes == c) for c in range(size)]
        self.features = [(ch[:, None] * k + np.arange(k)).ravel() for ch in channels]
        self._place, self._stays = np.arange(b.shape[1]), np.ones(b.shape[1], bool)

    def scores(self, allowed: np.ndarray) -> np.ndarray:
        """Relative error (size,) that removing each allowed class adds; 0 for classes that this layer does not read."""
        scores, b, p = np.zeros(len(allowed)), self._b.array, self._p.array
        by_width: dict[int, list[int]] = {}
        for c in np.flatnonzero(allowed):
            by_width.setdefault(len(self.features[c]), []).append(int(c))
        for width, classes in by_width.items():
            if width == 0:
                continue
            f = np.stack([self.features[c] for c in classes])  # (m, width)
            at = self._place[f]
            blocks = p[at[:, :, None], at[:, None, :]]
            columns = b[:, f].transpose(1, 2, 0)  # (m, width, O)
            solved = np.linalg.solve(blocks, columns)
            scores[classes] = np.einsum("mwo,mwo->m", columns, solved)
        return scores * self.scale

    def remove(self, classes: Sequence[int]) -> None:
        """Remove classes, and update P and the least-squares solution B for the features that stay."""
        f = np.concatenate([self.features[c] for c in classes])
        if len(f) == 0:
            return
        b, p = self._b.writable(), self._p.writable()
        at, stay = self._place[f], np.flatnonzero(self._stays)
        update = np.linalg.solve(p[np.ix_(at, at)], p[at])  # (width, features in P)
        b[:, stay] -= b[:, f] @ update[:, self._place[stay]]
        left = p[:, at]
        for start in range(0, len(p), ROWS):
            p[start : start + ROWS] -= left[start : start + ROWS] @ update
        b[:, f] = 0
        self._stays[f] = False
        if np.count_nonzero(self._stays) < SMALLER * len(p):
            self._shrink()

    def _shrink(self) -> None:
        """Take out of P the features that have gone."""
        stay = np.flatnonzero(self._stays)
        at = self._place[stay]
        smaller = self._shelf.keep(self._p.array[np.ix_(at, at)])
        self._p.drop()
        self._p, self._place = smaller, np.full(len(self._place), -1)
        self._place[stay] = np.arange(len(stay))

    def weight(self) -> Kept:
        """The repaired weight so far, float32, on the shelf, as those of all groups and counts outgrow the model."""
        return self._shelf.keep(self._b.array.reshape(self.shape).astype(np.float32))

    def drop(self) -> None:
        """Remove P and B from the shelf."""
        self._b.drop()
        self._p.drop()
