"""Input-side SVD of a ConvTranspose: 1×1 Conv from I to r channels, then the ConvTranspose from r to O.

The cheap 1×1 Conv runs before the image is enlarged. Its factor comes from the SVD of W as an (O k k) × I matrix,
whitened by the second moment of the input channels. Given it, the ConvTranspose is the least-squares solution in the
norm of the layer's responses. Where the stride is the kernel's size, so that each output reads one input position, both
together are the best of their rank.
"""

from __future__ import annotations

import math
from dataclasses import replace

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import least_squares, principal, whitening
from passes.decompose.base import Decomposition, Factors, Problem, Solver, mode_moment, projected
from passes.decompose.output_svd import pointwise
from passes.graph.layers import Geometry

__all__ = ["InputSVD"]


class InputSVD(Decomposition):
    """W[o, i, y] ≈ Σ_r G[o, r, y] A[r, i], for a ConvTranspose."""

    name = "input"

    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        if not geometry.transposed:
            return Declined(node, Why.FORM, "it is not a ConvTranspose")
        reason = "it is a grouped ConvTranspose, which has no dense matrix to factor"
        return Declined(node, Why.GROUPED, reason) if geometry.groups > 1 else None

    def max_rank(self, geometry: Geometry) -> int:
        return min(geometry.inputs, geometry.outputs * math.prod(geometry.kernel))

    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        return (pointwise(geometry, geometry.inputs, rank), replace(geometry, inputs=rank))

    def solver(self, problem: Problem) -> Solver:
        geometry = problem.geometry
        o, i, k = geometry.outputs, geometry.inputs, math.prod(geometry.kernel)
        white, inverse = whitening(mode_moment(problem.moment, geometry))
        rows = problem.weight.reshape(o, i, k).swapaxes(1, 2).reshape(o * k, i) @ white
        vectors = principal(rows.T @ rows)[1]

        def factors(rank: int) -> Factors:
            project = vectors[:, :rank].T @ inverse  # (rank, I)
            spread = least_squares(*projected(project, problem))
            return project.reshape(rank, i, *[1] * len(geometry.kernel)), spread.reshape(o, rank, *geometry.kernel)

        return factors
