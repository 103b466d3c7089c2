"""Spatial SVD: k×1 from I to r channels, then 1×k from r to O (Jaderberg et al., BMVC 2014).

W[o, i, y, x] ≈ Σ_r H[o, r, x] V[r, i, y]. V comes from the SVD of W as an (I k_y) × (k_x O) matrix whose rows are
whitened by the second moment of the patches' columns (i, y), averaged over x. H is the least-squares solution given V.
Polished, V is the best in the norm of the responses that is found from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import least_squares, principal, whitening
from passes.decompose.base import Decomposition, Factors, Problem, Solver, projected
from passes.decompose.polish import polish, steps_for
from passes.graph.layers import Geometry

__all__ = ["SpatialSVD"]

# Steps of polishing after which nothing is gained any more (docs/experiments.md).
MOST_STEPS = 30


class SpatialSVD(Decomposition):
    """A vertical Conv and a horizontal one."""

    name = "spatial"

    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        if geometry.groups > 1:
            return Declined(node, Why.GROUPED, "it is a grouped Conv, which has no dense matrix to factor")
        if geometry.transposed:
            return Declined(node, Why.FORM, "it is a ConvTranspose")
        if len(geometry.kernel) != 2 or min(geometry.kernel) == 1:
            return Declined(node, Why.KERNEL, f"its kernel {geometry.kernel} does not extend over two spatial axes")
        return None

    def max_rank(self, geometry: Geometry) -> int:
        return min(geometry.inputs * geometry.kernel[0], geometry.outputs * geometry.kernel[1])

    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        (ky, kx), (sy, sx), (dy, dx) = geometry.kernel, geometry.strides, geometry.dilations
        top, left, bottom, right = geometry.pads
        return (
            Geometry(geometry.inputs, rank, (ky, 1), (sy, 1), (top, 0, bottom, 0), (dy, 1)),
            Geometry(rank, geometry.outputs, (1, kx), (1, sx), (0, left, 0, right), (1, dx)),
        )

    def solver(self, problem: Problem) -> Solver:
        white, inverse = _whitening(problem)
        rows = white.T @ problem.weight.transpose(1, 2, 3, 0).reshape(len(white), -1)
        vectors = principal(rows @ rows.T)[1]  # their left singular vectors
        moments: list[np.ndarray] = []  # of the largest rank so far; those of a lower rank are a part of them

        def factors(rank: int) -> Factors:
            vertical = vectors[:, :rank].T @ inverse
            columns = rank * problem.geometry.kernel[1]
            if not moments or len(moments[0]) < columns:
                moments[:] = projected(vertical, problem)
            features, responses = moments
            return _chain(problem.geometry, vertical, features[:columns, :columns], responses[:, :columns])

        return factors

    def polished(self, problem: Problem, factors: Factors) -> Factors:
        geometry = problem.geometry
        rank, kx = len(factors[0]), geometry.kernel[1]
        steps = min(steps_for(rank * kx, geometry.features), MOST_STEPS)
        if not steps or rank >= self.max_rank(geometry):
            return factors
        white, inverse = _whitening(problem)
        start = factors[0].reshape(rank, -1) @ white
        found = polish(problem, _Vertical(inverse, kx), start, steps)
        if found is start:
            return factors
        vertical = found @ inverse
        return _chain(geometry, vertical, *projected(vertical, problem))


def _whitening(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """That of the second moment (I k_y, I k_y) of the patches' columns, averaged over x."""
    (ky, kx), i = problem.geometry.kernel, problem.geometry.inputs
    return whitening(np.einsum("axbx->ab", problem.moment.reshape(i * ky, kx, i * ky, kx)) / kx)


def _chain(geometry: Geometry, vertical: np.ndarray, features: np.ndarray, responses: np.ndarray) -> Factors:
    """V (r, I k_y) and the H that fits it, as the links' weights; see `projected` for the moments."""
    (ky, kx), rank = geometry.kernel, len(vertical)
    horizontal = least_squares(features, responses)
    return vertical.reshape(rank, -1, ky, 1), horizontal.reshape(-1, rank, 1, kx)


@dataclass(frozen=True)
class _Vertical:
    """V, whitened, (r, I k_y), as what is free: J[(r, x), (i, y, x')] = V[r, (i, y)] where x = x', else 0."""

    inverse: np.ndarray
    width: int

    def times(self, f: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        # a transposed matrix is copied, as one product for each x has to find its rows in a piece
        by_place = np.ascontiguousarray(matrix).reshape(-1, self.width, matrix.shape[1]).swapaxes(0, 1)
        return ((f @ self.inverse) @ by_place).swapaxes(0, 1).reshape(-1, matrix.shape[1])

    def pull(self, f: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        lefts = np.ascontiguousarray(left.reshape(len(f), self.width, -1).swapaxes(0, 1))  # (x, r, k)
        rights = np.ascontiguousarray(right.reshape(len(right), -1, self.width).transpose(2, 0, 1))  # (x, k, (i, y))
        return np.asarray((lefts @ rights).sum(0) @ self.inverse.T)
