"""Tucker-2: 1×1 from I to s channels, k×k from s to r, 1×1 from r to O (Kim et al., ICLR 2016).

The input factor is that of the partial Tucker decomposition of W whitened by the channels' second moment, by
higher-order orthogonal iteration (De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21, 2000). Given it, the other two
have a closed form that is optimal in the norm of the responses: the output-side SVD of the least-squares map from the
projected patches.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import least_squares, principal, whitening
from passes.decompose.base import Decomposition, Factors, Problem, Solver, in_single, mode_moment, projected
from passes.decompose.output_svd import OutputSVD, pointwise
from passes.graph.layers import Geometry

__all__ = ["Tucker2"]

# Iterations, which start at the truncated SVDs.
ITERATIONS = 2


class Tucker2(Decomposition):
    """Tucker-2 with the rank r on the output side, and s = max(r I / O, r / (k k)) on the input side, at most I.

    r I / O cuts both sides in proportion. s has to be r / (k k) at least, as a k×k Conv from s channels has no more
    than s k k independent outputs.
    """

    name = "tucker"

    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        if geometry.groups > 1:
            return Declined(node, Why.GROUPED, "it is a grouped Conv, which has no dense matrix to factor")
        if math.prod(geometry.kernel) == 1:
            return Declined(node, Why.KERNEL, "its kernel is 1×1, for which the SVD is the Tucker decomposition")
        return None

    def max_rank(self, geometry: Geometry) -> int:
        return min(geometry.outputs, geometry.features)

    def input_rank(self, geometry: Geometry, rank: int) -> int:
        """The rank s of the input side; at the full rank r it is I."""
        in_proportion = round(rank * geometry.inputs / geometry.outputs)
        return min(geometry.inputs, max(in_proportion, math.ceil(rank / math.prod(geometry.kernel))))

    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        s = self.input_rank(geometry, rank)
        return (
            pointwise(geometry, geometry.inputs, s),
            replace(geometry, inputs=s, outputs=rank),
            pointwise(geometry, rank, geometry.outputs),
        )

    def solver(self, problem: Problem) -> Solver:
        geometry = problem.geometry
        o, i, k = geometry.outputs, geometry.inputs, math.prod(geometry.kernel)
        white, inverse = whitening(mode_moment(problem.moment, geometry))
        whitened = np.einsum("oik,ij->ojk", problem.weight.reshape(o, i, k), white, optimize=True)
        single = in_single(whitened)  # for the iterations, which find a subspace; what follows solves in it

        def factors(rank: int) -> Factors:
            s = self.input_rank(geometry, rank)
            project = _input_factor(single, rank, s).T @ inverse  # (s, I)
            second, responses = projected(project, problem)
            inner = geometry.resized(s, o)
            core = least_squares(second, responses).reshape(inner.weight_shape)
            middle, last = OutputSVD().solver(Problem(inner, core, second, responses))(rank)
            return project.reshape(s, i, *[1] * len(geometry.kernel)), middle, last

        return factors


def _input_factor(tensor: np.ndarray, rank: int, s: int) -> np.ndarray:
    """The input factor (I, s) of the Tucker-2 decomposition of (O, I, k) with an output factor of that rank.

    tensorly's `partial_tucker` finds the same, and takes several times as long: it makes whole SVDs of the unfolded
    tensor in each iteration, of which the leading vectors on one side are needed.
    """
    inputs = _leading(tensor.swapaxes(0, 1), s)
    for _ in range(ITERATIONS):
        outputs = _leading(np.einsum("oik,is->osk", tensor, inputs, optimize=True), rank)
        inputs = _leading(np.einsum("oik,or->irk", tensor, outputs, optimize=True), s)
    return inputs


def _leading(tensor: np.ndarray, count: int) -> np.ndarray:
    """The leading left singular vectors (a, count) of a tensor (a, b, k) that is unfolded to (a, b k).

    `svd_by_gram` would give b k of them at most; these are always as many as asked for, up to a.
    """
    matrix = tensor.reshape(len(tensor), -1)
    return principal(matrix @ matrix.T)[1][:, :count]
