"""Output-side SVD: k×k from I to r channels, then 1×1 from r to O; for a Gemm or a 1×1 Conv, the plain SVD.

In the norm of the layer's responses this is reduced-rank regression (Izenman, J. Multivariate Anal. 5, 1975;
for Convs: Zhang et al., TPAMI 38(10), 2016): Ŵ = V Vᵀ W with V the leading eigenvectors of W M Wᵀ.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import principal, whitening
from passes.decompose.base import Decomposition, Factors, Problem, Solver
from passes.graph.layers import Geometry

__all__ = ["OutputSVD", "pointwise"]


class OutputSVD(Decomposition):
    """W ≈ V (Vᵀ W), with W as an (O, I k k) matrix and V (O, r)."""

    name = "svd"

    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        reason = "it is a grouped Conv, which has no dense matrix to factor"
        return Declined(node, Why.GROUPED, reason) if geometry.groups > 1 else None

    def max_rank(self, geometry: Geometry) -> int:
        return min(geometry.outputs, geometry.features)

    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        return (replace(geometry, outputs=rank), pointwise(geometry, rank, geometry.outputs))

    def solver(self, problem: Problem) -> Solver:
        geometry, matrix = problem.geometry, problem.matrix
        if geometry.outputs > geometry.features:  # V as left singular vectors of W L with M = L Lᵀ, the smaller problem
            vectors = np.linalg.svd(matrix @ whitening(problem.moment)[0], full_matrices=False)[0]
        else:
            vectors = principal(problem.answers @ matrix.T)[1]

        def factors(rank: int) -> Factors:
            leading = vectors[:, :rank]
            first = (leading.T @ matrix).reshape(rank, *geometry.weight_shape[1:])
            return first, leading.reshape(geometry.outputs, rank, *[1] * len(geometry.kernel))

        return factors


def pointwise(geometry: Geometry, inputs: int, outputs: int) -> Geometry:
    """A 1×1 Conv with as many spatial axes as `geometry` has; for a Gemm, a Gemm."""
    d = len(geometry.kernel)
    return Geometry(inputs, outputs, (1,) * d, (1,) * d, (0,) * 2 * d, (1,) * d)
