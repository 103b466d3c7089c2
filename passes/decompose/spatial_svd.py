"""Spatial SVD: k×1 from I to r channels, then 1×k from r to O (Jaderberg et al., BMVC 2014).

W[o, i, y, x] ≈ Σ_r H[o, r, x] V[r, i, y]. V comes from the SVD of W as an (I k_y) × (k_x O) matrix whose rows are
whitened by the second moment of the patches' columns (i, y), averaged over x. H is the least-squares solution given V.
Polished, V is the best in the norm of the responses that is found from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import least_squares, root
from passes.decompose.base import Decomposition, Factors, Solver
from passes.decompose.polish import polish, steps_for
from passes.graph.layers import Geometry

__all__ = ["SpatialSVD"]


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

    def solver(self, geometry: Geometry, weight: np.ndarray, moment: np.ndarray) -> Solver:
        half, inverse_half = _roots(geometry, moment)
        white = half @ weight.transpose(1, 2, 3, 0).reshape(len(half), -1)
        vectors = np.linalg.eigh(white @ white.T)[1][:, ::-1]  # its left singular vectors

        def factors(rank: int) -> Factors:
            return _chain(geometry, weight, moment, vectors[:, :rank].T @ inverse_half)

        return factors

    def polished(self, geometry: Geometry, weight: np.ndarray, moment: np.ndarray, factors: Factors) -> Factors:
        rank, kx = len(factors[0]), geometry.kernel[1]
        steps = steps_for(rank * kx, geometry.features)
        if not steps or rank >= self.max_rank(geometry):
            return factors
        half, inverse_half = _roots(geometry, moment)
        white = factors[0].reshape(-1, len(half)) @ half
        found = polish(weight.reshape(len(weight), -1), moment, _Vertical(inverse_half, kx), white, steps)
        return factors if found is white else _chain(geometry, weight, moment, found @ inverse_half)


def _roots(geometry: Geometry, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M^½ and M^-½ of the second moment M (I k_y, I k_y) of the patches' columns, averaged over x."""
    (ky, kx), i = geometry.kernel, geometry.inputs
    return root(np.einsum("axbx->ab", moment.reshape(i * ky, kx, i * ky, kx)) / kx)


def _chain(geometry: Geometry, weight: np.ndarray, moment: np.ndarray, vertical: np.ndarray) -> Factors:
    """V (r, I k_y) and H as the links' weights."""
    (ky, kx), o, rank = geometry.kernel, len(weight), len(vertical)
    by_place = moment.reshape(vertical.shape[1], kx, -1, kx)
    # z[r, x] = Σ_(i,y) V[r, (i, y)] patch[(i, y), x]; y = H z
    half_way = np.einsum("ra,axbw->rxbw", vertical, by_place, optimize=True)
    features = np.einsum("rxbw,sb->rxsw", half_way, vertical, optimize=True).reshape(rank * kx, -1)
    responses = np.einsum("ow,rxw->orx", weight.reshape(o, -1), half_way.reshape(rank, kx, -1), optimize=True)
    horizontal = least_squares(features, responses.reshape(o, -1))
    return vertical.reshape(rank, -1, ky, 1), horizontal.reshape(o, rank, 1, kx)


@dataclass(frozen=True)
class _Vertical:
    """V, whitened, (r, I k_y), as what is free: J[(r, x), (i, y, x')] = V[r, (i, y)] where x = x', else 0."""

    inverse_half: np.ndarray
    width: int

    def expand(self, f: np.ndarray) -> np.ndarray:
        vertical, kx = f @ self.inverse_half, self.width
        kernel = np.zeros((len(f), kx, f.shape[1], kx))
        for x in range(kx):
            kernel[:, x, :, x] = vertical
        return kernel.reshape(len(f) * kx, -1)

    def pull(self, f: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        by_place = gradient.reshape(len(f), self.width, -1, self.width)
        return np.asarray(np.einsum("rxax->ra", by_place) @ self.inverse_half)
