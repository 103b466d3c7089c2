"""Which channels to remove: backward elimination by the least-squares error of the layers that read them.

Let a consumer be y = B x with second moment M of x, and P = M⁻¹. Removing the features F of a channel, and solving B
again for the features that stay, adds the error tr(B_F (P_FF)⁻¹ B_Fᵀ). The updates are P ← P - P_:F (P_FF)⁻¹ P_F: and
B ← B - B_F (P_FF)⁻¹ P_F:. (This is Hassibi & Stork's optimal brain surgeon, NIPS 1992, for a block of inputs of a
linear layer.) The score of a channel that several layers read is the sum of their errors, each as a share of its
layer's own response.

In a large group, several channels are scored and then removed together. With fewer than 2 `LOTS` channels, one is
removed at a time. What they subtract from P is subtracted later, that of several steps at once; a step needs the blocks
P_FF of all channels, which are updated at once, and the rows P_F: of those that it removes.

A class is a set of channels that are removed together; usually it is one channel (see `passes.channels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmc_onnx.search_space.pruning_steps import Steps
from passes.core.linear_algebra import damped, lower_inverse
from passes.core.shelf import MEMORY, Kept, Shelf

__all__ = ["Consumer", "Elimination", "Floors", "eliminate"]

# A group is eliminated in about this many steps; 1 / LOTS of its channels are removed in each.
LOTS = 128
# P is updated when so many features are to be taken out, as it is then bound by multiplications and not by the memory;
# so many rows at a time; and it is made smaller where no more than this share of its features is left.
LATE, ROWS, SMALLER = 192, 256, 0.8


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

    They hold the features that stay and, until they are made smaller, some that have gone. `_place` is where each
    feature is in them. Of P, the lower triangle is up to date but for what is subtracted later: the products of
    `_columns`, P_:F (places, features), with `_rows`, (P_FF)⁻¹ P_F: (features, places).
    """

    def __init__(self, consumer: Consumer, size: int, shelf: Shelf) -> None:
        weight, moment = consumer.weight.array, consumer.moment.array
        self.shape, self._shelf = weight.shape, shelf
        b = weight.reshape(len(weight), -1).astype(np.float64)
        self.scale = 1 / max(np.einsum("on,on->", b @ moment, b), np.finfo(float).tiny)
        p = lower_inverse(damped(moment, 1e-6))
        k = math.prod(self.shape[2:])
        channels = [np.flatnonzero(consumer.classes == c) for c in range(size)]
        self.features = [(ch[:, None] * k + np.arange(k)).ravel() for ch in channels]
        self._blocks = _blocks(p, self.features)
        self._hold(np.ascontiguousarray(b.T), p)
        self._place, self._stays = np.arange(b.shape[1]), np.ones(b.shape[1], bool)
        self._columns: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def _hold(self, b: np.ndarray, p: np.ndarray) -> None:
        """Put B and P on the shelf; a file is mapped once, as each page of a new map is a fault that takes long."""
        self._kept = [self._shelf.keep(b), self._shelf.keep(p)]
        self._b, self._p = (kept.writable() for kept in self._kept)

    def scores(self, allowed: np.ndarray) -> np.ndarray:
        """Relative error (size,) that removing each allowed class adds; 0 for classes that this layer does not read."""
        scores, b = np.zeros(len(allowed)), self._b
        for classes, features, blocks in self._blocks:
            some = allowed[classes]
            own = b[self._place[features[some]]]  # (m, width, O)
            solved = np.linalg.solve(blocks[some], own @ own.swapaxes(1, 2))
            scores[classes[some]] = np.trace(solved, axis1=1, axis2=2)
        return scores * self.scale

    def remove(self, classes: Sequence[int]) -> None:
        """Remove classes, and update P and the least-squares solution B for the features that stay."""
        f = np.concatenate([self.features[c] for c in classes])
        if len(f) == 0:
            return
        at = self._place[f]
        rows = _rows_of(self._p, at)
        for columns, late in zip(self._columns, self._rows, strict=True):
            rows -= columns[at] @ late
        rows[:, self._place[~self._stays & (self._place >= 0)]] = 0  # which rounding would make other than zero
        columns, rows = rows.T, np.linalg.solve(rows[:, at], rows)
        self._columns.append(columns)
        self._rows.append(rows)
        self._b -= rows.T @ self._b[at]
        self._b[at] = 0
        self._stays[f] = False
        self._blocks = [self._updated(*own, columns, rows.T) for own in self._blocks]
        if sum(map(len, self._rows)) >= LATE:
            self._subtract()
        if np.count_nonzero(self._stays) < SMALLER * len(self._p):
            self._shrink()

    def _updated(
        self, classes: np.ndarray, features: np.ndarray, blocks: np.ndarray, columns: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blocks of the classes that stay, less the product of columns and rows, each (places, features removed)."""
        left = self._stays[features[:, 0]]
        places = self._place[features[left]]
        return classes[left], features[left], blocks[left] - columns[places] @ rows[places].swapaxes(1, 2)

    def _subtract(self) -> None:
        """Subtract from P what is to be subtracted later."""
        p, columns, rows = self._p, np.concatenate(self._columns, 1), np.concatenate(self._rows)
        for start in range(0, len(p), ROWS):
            end = start + ROWS
            p[start:end, :end] -= columns[start:end] @ rows[:, :end]
        self._columns, self._rows = [], []

    def _shrink(self) -> None:
        """Take out of P and B the features that have gone."""
        if self._rows:
            self._subtract()
        stay = np.flatnonzero(self._stays)
        at = self._place[stay]
        b, p = self._b[at], self._p[np.ix_(at, at)]
        self.drop()
        self._hold(b, p)
        self._place = np.full(len(self._place), -1)
        self._place[stay] = np.arange(len(stay))

    def weight(self) -> Kept:
        """The repaired weight so far, float32, on the shelf, as those of all groups and counts outgrow the model."""
        weight = np.zeros((len(self._place), self.shape[0]), np.float32)
        held = self._place >= 0
        weight[held] = self._b[self._place[held]]
        return self._shelf.keep(weight.T.reshape(self.shape))

    def drop(self) -> None:
        """Remove P and B from the shelf."""
        del self._b, self._p  # Windows deletes no file that is mapped
        for kept in self._kept:
            kept.drop()


def _blocks(p: np.ndarray, features: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each number w of features that classes have: the classes (m,), their features (m, w), and P_FF (m, w, w)."""
    widths = np.array([len(own) for own in features])
    found = []
    for width in sorted({*widths.tolist()} - {0}):
        classes = np.flatnonzero(widths == width)
        own = np.stack([features[int(c)] for c in classes])
        # the lower triangle is what is known of P
        blocks = p[np.maximum(own[:, :, None], own[:, None, :]), np.minimum(own[:, :, None], own[:, None, :])]
        found.append((classes, own, blocks))
    return found


def _rows_of(lower: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows (len(at), n) of a symmetric matrix (n, n) whose lower triangle is known."""
    rows = np.array(lower[at])
    for row, place in zip(rows, at, strict=True):
        row[place + 1 :] = lower[place + 1 :, place]
    return rows
