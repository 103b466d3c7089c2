"""Spatial SVD: k×1 from I to r channels, then 1×k from r to O (Jaderberg et al., BMVC 2014).

W[o, i, y, x] ≈ Σ_r H[o, r, x] V[r, i, y]. V comes from the SVD of W as an (I k_y) × (k_x O) matrix whose rows are
whitened by the second moment of the patches' columns (i, y), averaged over x. H is the least-squares solution given V.
"""

from __future__ import annotations

import numpy as np

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import least_squares, root
from passes.decompose.base import Decomposition, Factors, Solver
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
        o, i, (ky, kx) = geometry.outputs, geometry.inputs, geometry.kernel
        by_place = moment.reshape(i * ky, kx, i * ky, kx)
        half, inverse_half = root(np.einsum("axbx->ab", by_place) / kx)
        matrix = weight.transpose(1, 2, 3, 0).reshape(i * ky, kx * o)
        white = half @ matrix
        vectors = np.linalg.eigh(white @ white.T)[1][:, ::-1]  # its left singular vectors

        def factors(rank: int) -> Factors:
            vertical = vectors[:, :rank].T @ inverse_half  # (rank, I ky)
            # z[r, x] = Σ_(i,y) V[r, (i, y)] patch[(i, y), x]; y = H z
            half_way = np.einsum("ra,axbw->rxbw", vertical, by_place, optimize=True)
            features = np.einsum("rxbw,sb->rxsw", half_way, vertical, optimize=True).reshape(rank * kx, -1)
            responses = np.einsum("ow,rxw->orx", weight.reshape(o, -1), half_way.reshape(rank, kx, -1), optimize=True)
            horizontal = least_squares(features, responses.reshape(o, -1))
            return vertical.reshape(rank, i, ky, 1), horizontal.reshape(o, rank, 1, kx)

        return factors
