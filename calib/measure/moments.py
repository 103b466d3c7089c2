"""Streaming first and second moments of a layer's input patches and targets: the statistics that least squares needs.

For a Conv with patches x ∈ R^n (n = I k k) and targets t ∈ R^O, both at sampled output positions of the calibration
images, `Moments` accumulates the means x̄ and t̄, Sxx = E[(x - x̄)(x - x̄)ᵀ] and Stx = E[(t - t̄)(x - x̄)ᵀ], in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg.blas import dsyr, dsyr2, dsyrk

from passes.core.blas import NARROW
from passes.core.linear_algebra import mirror
from passes.core.shelf import Kept, Shelf
from passes.graph.layers import Geometry

__all__ = ["Centred", "JointMoments", "Moments", "sample_positions", "sampled_outputs", "sampled_patches"]

# Rows that are shifted and summed at once, so that the processor's caches hold them.
ROWS = 1024


@dataclass(frozen=True)
class Centred:
    """The mean patch (n,) and the centred second moment Sxx (n, n) of a layer's patches, float64.

    Nodes that share a weight may have several biases; there is a mean for each of these, and usually one. `low` and
    `high` are the least and the largest value in the patches, or 0 if that is beyond them.
    """

    means: tuple[np.ndarray, ...] = ()
    second: Kept = field(default_factory=lambda: Kept(np.zeros((0, 0))))
    low: float = 0.0
    high: float = 0.0


@dataclass
class Moments:
    """Accumulates blocks of patches and targets; the properties give the means and centred moments so far, float64.

    Of the sum of x xᵀ, which is symmetric and may be large, the upper triangle is accumulated, in place.
    """

    count: int = 0
    low: float = 0.0
    high: float = 0.0
    _sum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _second: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    _cross: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @np.errstate(invalid="ignore")  # of infinite patches, which the caller looks for
    def update(self, patches: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Add patches (m, n), of any float type, and the targets (m, O) at the same positions, if there are any."""
        given = [patches] if targets is None else [patches, targets]
        if self.count == 0:
            n, outputs = patches.shape[1], 0 if targets is None else targets.shape[1]
            # near the mean: subtracting it avoids cancellation in the second moments
            self._shift = np.concatenate([part.mean(0, dtype=np.float64) for part in given])
            self._sum, self._second, self._cross = np.zeros(n + outputs), np.zeros((n, n)), np.zeros((outputs, n))
        self.count += len(patches)
        shifts = np.split(self._shift, [len(self._second)])
        for start in range(0, len(patches), ROWS):
            rows = [part[start : start + ROWS] for part in given]
            self.low = min(self.low, float(rows[0].min(initial=0.0)))
            self.high = max(self.high, float(rows[0].max(initial=0.0)))
            x, *t = (np.subtract(part, shift) for part, shift in zip(rows, shifts, strict=False))
            self._sum += np.concatenate([part.sum(0) for part in (x, *t)])
            if len(self._second) > NARROW:
                # of arrays stored by columns, as BLAS takes them: there, the lower triangle is the upper one by rows
                dsyrk(1.0, x.T, beta=1.0, c=self._second.T, lower=True, overwrite_c=True)
            else:  # numpy lets other threads run meanwhile, which scipy does not
                self._second += x.T @ x
            if t:
                self._cross += t[0].T @ x

    def joined(self, other: Moments) -> Moments:
        """The moments of the blocks of both."""
        if not self.count or not other.count:
            return self if self.count else other
        n, moved = len(self._second), other._shift - self._shift
        (x, t), (dx, dt) = np.split(other._sum, [n]), np.split(moved, [n])
        low, high = min(self.low, other.low), max(self.high, other.high)
        found = Moments(self.count + other.count, low, high, self._sum + other._sum + other.count * moved)
        found._shift = self._shift
        found._second = self._second + other._second
        dsyr2(1.0, x, dx, a=found._second.T, lower=True, overwrite_a=True)
        dsyr(float(other.count), dx, a=found._second.T, lower=True, overwrite_a=True)
        found._cross = self._cross + other._cross + np.outer(t, dx) + np.outer(dt, x + other.count * dx)
        return found

    def centred(self, shelf: Shelf) -> Centred:
        """The mean and the second moment of the patches, which decompositions and eliminations need, on a shelf."""
        return Centred((self.mean,), shelf.keep(self.second), self.low, self.high)

    @property
    def mean(self) -> np.ndarray:
        """Mean patch (n,)."""
        return (self._shift + self._sum / self.count)[: len(self._second)]

    @property
    def target_mean(self) -> np.ndarray:
        """Mean target (O,)."""
        return (self._shift + self._sum / self.count)[len(self._second) :]

    @property
    def second(self) -> np.ndarray:
        """Sxx (n, n)."""
        mean = self._sum[: len(self._second)] / self.count
        found = self._second / self.count
        dsyr(-1.0, mean, a=found.T, lower=True, overwrite_a=True)
        mirror(found)
        return found

    @property
    def cross(self) -> np.ndarray:
        """Stx (O, n)."""
        x, t = np.split(self._sum / self.count, [len(self._second)])
        return self._cross / self.count - np.outer(t, x)


class JointMoments:
    """The moments of nodes that share a weight B, with one bias or with several.

    The least-squares fit of B and of all biases needs second moments about the mean of each bias's own patches, summed
    over the biases.

    Args:
        biases: number of biases.

    Attributes:
        parts: moments of the patches and targets of each bias.
    """

    def __init__(self, biases: int = 1) -> None:
        self.parts = [Moments() for _ in range(biases)]

    def centred(self, shelf: Shelf) -> Centred:
        """As for `Moments`, with a mean for each bias."""
        low, high = min(part.low for part in self.parts), max(part.high for part in self.parts)
        return Centred(tuple(part.mean for part in self.parts), shelf.keep(self.second), low, high)

    def joined(self, other: JointMoments) -> JointMoments:
        """The moments of the blocks of both."""
        found = JointMoments(len(self.parts))
        found.parts = [mine.joined(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True)]
        return found

    @property
    def second(self) -> np.ndarray:
        """Sxx (n, n), the mean over all patches."""
        return self._pooled([part.second for part in self.parts])

    @property
    def cross(self) -> np.ndarray:
        """Stx (O, n), the mean over all patches."""
        return self._pooled([part.cross for part in self.parts])

    def _pooled(self, each: Sequence[np.ndarray]) -> np.ndarray:
        if len(each) == 1:
            return each[0]
        counts = [part.count for part in self.parts]
        return np.average(each, axis=0, weights=counts)


def sample_positions(geometry: Geometry, size: tuple[int, ...], most: int, rng: np.random.Generator) -> np.ndarray:
    """The flat output positions to use in each image: all, or `most` of them drawn without replacement, sorted."""
    places = math.prod(geometry.output_size(size))
    return np.arange(places) if places <= most else np.sort(rng.choice(places, most, replace=False))


def sampled_patches(x: np.ndarray, geometry: Geometry, positions: np.ndarray) -> np.ndarray:
    """Input patches at some output positions: (N · positions, I k k), each in the order (I, *kernel).

    Args:
        x: (N, I, *spatial); (N, I) for a Gemm.
        geometry: geometry of the layer, ungrouped.
        positions: flat indices into the output's spatial positions.

    The patch of a ConvTranspose has the input value that each tap of the kernel reads for this output, and 0 where it
    reads none: between the values where the stride is above 1, and outside the image.
    """
    if not geometry.kernel:
        return x.reshape(-1, geometry.inputs)
    size = x.shape[2:]
    place, read = _reads(geometry, size, positions)
    channels = np.arange(geometry.inputs)[:, None] * math.prod(size)
    patches = np.take(x.reshape(len(x), -1), place[:, None] + channels, axis=1)  # (N, positions, I, k k)
    if not read.all():
        patches.swapaxes(1, 2)[:, :, ~read] = 0
    return patches.reshape(-1, geometry.features)


def _reads(geometry: Geometry, size: Sequence[int], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The flat input position that each tap of the kernel reads for each output position, and whether it reads any.

    Both are (positions, k k).
    """
    taps = np.stack(list(np.ndindex(*geometry.kernel)), axis=1)
    at = np.unravel_index(positions, geometry.output_size(tuple(size)))
    flat, read = np.zeros((len(positions), taps.shape[1]), np.intp), np.ones((len(positions), taps.shape[1]), bool)
    for i, n in enumerate(size):
        tap, out = taps[i] * geometry.dilations[i], at[i][:, None]
        if geometry.transposed:
            place, rest = np.divmod(out + geometry.pads[i] - tap, geometry.strides[i])
            read &= rest == 0
        else:
            place = out * geometry.strides[i] + tap - geometry.pads[i]
        read &= (place >= 0) & (place < n)
        flat = flat * n + place.clip(0, n - 1)
    return flat, read


def sampled_outputs(y: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Outputs at some output positions, (N · positions, O), from y (N, O, *spatial), or (N, O) of a Gemm."""
    if y.ndim == 2:
        return y
    flat = y.reshape(len(y), y.shape[1], -1)[:, :, positions]
    return np.moveaxis(flat, 1, 2).reshape(-1, y.shape[1])
