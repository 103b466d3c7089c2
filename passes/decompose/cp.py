"""CP: 1×1 from I to r channels, k×k depthwise on r, 1×1 from r to O (Lebedev et al., ICLR 2015).

The factors come from alternating least squares on W as an (O, I, k k) tensor, whitened by the channels' second moment;
the last one is then solved again by least squares in the norm of the responses. Polished, the first two are the best in
that norm that are found from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from passes.core.declined import Declined, Why
from passes.core.linear_algebra import least_squares, whitening
from passes.decompose.alternating import alternate
from passes.decompose.base import Decomposition, Factors, Problem, Solver, in_single, mode_moment
from passes.decompose.output_svd import pointwise
from passes.decompose.polish import polish, steps_for
from passes.graph.layers import Geometry

__all__ = ["CP"]


# Largest rank that `rank_for` gives: alternating least squares takes time in proportion to the rank, and above this one
# minutes for a layer.
MOST_OFFERED = 256


class CP(Decomposition):
    """W[o, i, y] ≈ Σ_r A[o, r] B[i, r] C[y, r]."""

    name = "cp"

    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        if geometry.groups > 1:
            return Declined(node, Why.GROUPED, "it is a grouped Conv, which has no dense tensor to factor")
        if geometry.transposed:
            return Declined(node, Why.FORM, "it is a ConvTranspose, and depthwise ones are slow in runtimes")
        if math.prod(geometry.kernel) == 1:
            return Declined(node, Why.KERNEL, "its kernel is 1×1, for which the SVD is the CP decomposition")
        return None

    def max_rank(self, geometry: Geometry) -> int:
        """The product of the two shorter of O, I and k k: with one term for each pair of their entries, CP is exact."""
        axes = geometry.outputs, geometry.inputs, math.prod(geometry.kernel)
        return math.prod(axes) // max(axes)

    def rank_for(self, geometry: Geometry, size: Sequence[int], ratio: float, align: int) -> int | None:
        rank = super().rank_for(geometry, size, ratio, align)
        return rank if rank is None else min(rank, max(MOST_OFFERED // align, 1) * align)

    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        return (
            pointwise(geometry, geometry.inputs, rank),
            replace(geometry, inputs=rank, outputs=rank, groups=rank),
            pointwise(geometry, rank, geometry.outputs),
        )

    def solver(self, problem: Problem) -> Solver:
        geometry = problem.geometry
        o, i, k = geometry.outputs, geometry.inputs, math.prod(geometry.kernel)
        weight = problem.weight.reshape(o, i, k)
        white, inverse = whitening(mode_moment(problem.moment, geometry))
        whitened = np.einsum("oik,ij->ojk", weight, white, optimize=True)
        single = in_single(whitened)  # for the iterations, which take most of the time

        def factors(rank: int) -> Factors:
            if rank >= self.max_rank(geometry):
                inputs, places = _pairs(weight)
            else:
                _, inputs, places = alternate(single, rank)
                inputs, places = inverse.T @ inputs, places.astype(np.float64)
            return _chain(problem, inputs, places)

        return factors

    def polished(self, problem: Problem, factors: Factors) -> Factors:
        geometry = problem.geometry
        rank, i = len(factors[0]), geometry.inputs
        steps = steps_for(rank, geometry.features)
        if not steps or rank >= self.max_rank(geometry):
            return factors
        white, inverse = whitening(mode_moment(problem.moment, geometry))
        terms = _Terms(inverse)
        inputs, places = white.T @ factors[0].reshape(rank, i).T, factors[1].reshape(rank, -1).T
        tiny = np.finfo(float).tiny
        start = np.concatenate([part / np.maximum(np.linalg.norm(part, axis=0), tiny) for part in (inputs, places)])
        found = polish(problem, terms, start, steps)
        return factors if found is start else _chain(problem, *terms.parts(found))


def _chain(problem: Problem, inputs: np.ndarray, places: np.ndarray) -> Factors:
    """B (I, r), C (k, r) and the A that fits them, as the links' weights."""
    kernel, rank = problem.geometry.kernel, inputs.shape[1]
    ones = [1] * len(kernel)
    join = _join(inputs, places)  # z = join x
    outputs = least_squares(join @ problem.moment @ join.T, problem.answers @ join.T)
    first, last = inputs.T.reshape(rank, -1, *ones), outputs.reshape(-1, rank, *ones)
    return first, places.T.reshape(rank, 1, *kernel), last


def _join(inputs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The kernels of the terms without their outputs, (r, I k k), from B (I, r) and C (k k, r)."""
    return np.einsum("ir,kr->rik", inputs, places).reshape(inputs.shape[1], -1)


@dataclass(frozen=True)
class _Terms:
    """B, whitened, above C, (I + k k, r), as what is free: J[r, (i, y)] = B[i, r] C[y, r]."""

    inverse: np.ndarray

    def parts(self, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """B (I, r) and C (k k, r)."""
        inputs = len(self.inverse)
        return self.inverse.T @ f[:inputs], f[inputs:]

    def times(self, f: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(_join(*self.parts(f)) @ matrix)

    def pull(self, f: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        b, c = self.parts(f)
        by_term = (left @ right).reshape(-1, len(b), len(c))
        by_input = np.einsum("rik,kr->ir", by_term, c)
        return np.concatenate([self.inverse @ by_input, np.einsum("rik,ir->kr", by_term, b)])


def _pairs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B (I, r) and C (k, r) of an exact CP of W (O, I, k), with a term for each pair of entries of its shorter axes."""
    o, i, k = weight.shape
    if o == max(weight.shape):
        return np.repeat(np.eye(i), k, 1), np.tile(np.eye(k), i)
    if i == max(weight.shape):
        return weight.transpose(1, 0, 2).reshape(i, o * k), np.tile(np.eye(k), o)
    return np.tile(np.eye(i), o), weight.transpose(2, 0, 1).reshape(k, o * i)
