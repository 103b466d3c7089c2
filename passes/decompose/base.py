"""What a decomposition is: a chain of plain Convs that stands for one Conv, and how to find its weights.

A layer y = W x + b with input patches x ∈ R^n (n = I k k, centred second moment M = E[x xᵀ]) loses
E‖(W - Ŵ) x‖² = tr((W - Ŵ) M (W - Ŵ)ᵀ) when a chain equivalent to Ŵ takes its place. Every decomposition
here finds weights that make this small, for a given rank; with M = I it is the weights' own error.

There is no non-linearity between links, only the last has a bias, and each axis of the kernel is longer than 1 in
at most one of them, so a chain is equivalent to one dense kernel (`compose`). Every candidate for a layer is thus
just another weight for it, and can be measured without building a graph for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.core.declined import Declined
from passes.graph.layers import Geometry

__all__ = [
    "Decomposition",
    "Factors",
    "Problem",
    "Solver",
    "chain_macs",
    "chain_parameters",
    "compose",
    "error",
    "in_single",
    "mode_moment",
    "projected",
]


# The weights of a chain's links, first to last: float64, each of its link's `weight_shape`.
Factors = tuple[np.ndarray, ...]
# From a rank to the weights of the links at that rank. Several ranks take less time if the largest comes first.
Solver = Callable[[int], Factors]


@dataclass(frozen=True, eq=False)
class Problem:
    """A layer that a chain is to stand for.

    Attributes:
        geometry: the layer's geometry.
        weight: W, (O, I, *kernel), float64.
        moment: M, (n, n), the centred second moment of the input patches, flattened in the order (I, *kernel), float64.
        answers: W M, (O, n), which takes longer to compute than most of what is made of it.
    """

    geometry: Geometry
    weight: np.ndarray
    moment: np.ndarray
    answers: np.ndarray

    @classmethod
    def of(cls, geometry: Geometry, weight: np.ndarray, moment: np.ndarray) -> Problem:
        """The problem of a layer, with its answers."""
        return cls(geometry, weight, moment, weight.reshape(len(weight), -1) @ moment)

    def of_outputs(self, kept: np.ndarray) -> Problem:
        """The problem of some outputs of the layer, given by a mask (O,), which shares the moment and the answers."""
        if kept.all():
            return self
        geometry = self.geometry.resized(self.geometry.inputs, int(kept.sum()))
        return Problem(geometry, self.weight[kept], self.moment, self.answers[kept])

    @property
    def matrix(self) -> np.ndarray:
        """W as a matrix (O, n)."""
        return self.weight.reshape(len(self.weight), -1)

    @property
    def response(self) -> float:
        """E‖W x‖² about the mean."""
        return float(np.vdot(self.matrix, self.answers))


class Decomposition(ABC):
    """One way to replace a layer by a chain of links; it has no state. `name` is its name in plans."""

    name: ClassVar[str]

    @abstractmethod
    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        """Why the decomposition does not apply to a layer of this geometry, named `node`; None if it does."""

    @abstractmethod
    def max_rank(self, geometry: Geometry) -> int:
        """The smallest rank at which the chain can be exact for every weight (for CP: an upper bound of it)."""

    @abstractmethod
    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        """The chain's geometries, first to last."""

    @abstractmethod
    def solver(self, problem: Problem) -> Solver:
        """A function that finds the links' weights for a rank; what all ranks share is computed once.

        Returns:
            A function from the rank (1 to `max_rank`) to float64 arrays, one for each link, of its `weight_shape`.
        """

    def factors(self, geometry: Geometry, weight: np.ndarray, moment: np.ndarray, rank: int) -> Factors:
        """The links' weights at one rank, polished: more work than one of many ranks is worth in a search.

        Args:
            geometry, weight, moment: as of `Problem`.
            rank: from 1 to `max_rank`.
        """
        problem = Problem.of(geometry, weight, moment)
        return self.polished(problem, self.solver(problem)(rank))

    def polished(self, problem: Problem, factors: Factors) -> Factors:
        """Factors that lose less than those given, where the solver's are not the best there are; else these."""
        return factors

    def rank_for(self, geometry: Geometry, size: Sequence[int], ratio: float, align: int) -> int | None:
        """The largest rank, a multiple of `align`, with at most `ratio` of the layer's MACs; None if there is none."""
        budget = ratio * geometry.macs(size)
        unit = chain_macs(self.links(geometry, align), size)
        rank = min(max(int(budget / max(unit, 1)) * align, align), self.max_rank(geometry) // align * align)
        while rank >= align and chain_macs(self.links(geometry, rank), size) > budget:
            rank -= align
        return rank if rank >= align else None


def chain_macs(links: Sequence[Geometry], size: Sequence[int]) -> int:
    """Multiply-accumulates of a chain for one input of the spatial size `size`."""
    macs = 0
    for link in links:
        macs += link.macs(size)
        size = link.output_size(size)
    return macs


def chain_parameters(links: Sequence[Geometry]) -> int:
    """Number of weights in a chain, with the last link's bias."""
    return sum(link.parameters for link in links) + links[-1].outputs


def compose(links: Sequence[Geometry], factors: Sequence[np.ndarray]) -> np.ndarray:
    """The single dense kernel (O, I, *kernel) that is equivalent to a chain."""
    whole: np.ndarray | None = None
    for link, factor in zip(links, factors, strict=True):
        dense = factor
        if link.groups > 1:  # depthwise
            dense = np.zeros((link.outputs, link.inputs, *link.kernel))
            dense[np.arange(link.outputs), np.arange(link.inputs)] = factor[:, 0]
        whole = dense if whole is None else np.einsum("or...,ri...->oi...", dense, whole, optimize=True)
    assert whole is not None
    return whole


def error(weight: np.ndarray, approximation: np.ndarray, moment: np.ndarray) -> float:
    """tr((W - Ŵ) M (W - Ŵ)ᵀ): the squared error of a layer's outputs, summed over them, per position."""
    difference = (weight - approximation).reshape(len(weight), -1)
    return float(np.einsum("on,on->", difference @ moment, difference))


def mode_moment(moment: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The second moment of the input channels (I, I): that of the patches, averaged over the kernel's positions."""
    i, k = geometry.inputs, math.prod(geometry.kernel)
    return np.einsum("akbk->ab", moment.reshape(i, k, i, k)) / k


def in_single(tensor: np.ndarray) -> np.ndarray:
    """A tensor in float32, divided by its norm, so that squares neither overflow nor vanish. Zeros stay zeros."""
    norm = float(np.linalg.norm(tensor))
    return (tensor / norm if norm > 0 else tensor).astype(np.float32)


def projected(project: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """E[z zᵀ] (s k, s k) and E[y zᵀ] (O, s k) of z = P x at k places: z[s, k] = Σ_a P[s, a] x[a, k].

    Args:
        project: P, (s, a), by which the patches x are projected that are flattened in the order (a, k).
        problem: the layer.
    """
    (s, a), n = project.shape, len(problem.moment)
    places = n // a
    by_place = problem.moment.reshape(a, places, a, places)
    found = np.empty((s, places, s, places))
    for x in range(places):  # E[z zᵀ] is symmetric, so each pair of places is computed once
        half = (project @ by_place[:, x, :, x:].reshape(a, -1)).reshape(s, a, places - x)
        blocks = np.ascontiguousarray(half.transpose(2, 0, 1)) @ project.T  # (places - x, s, s)
        found[:, x, :, x:] = blocks.transpose(1, 2, 0)
        found[:, x:, :, x] = blocks.transpose(2, 0, 1)
    answers = problem.answers.reshape(-1, a, places)
    responses = np.einsum("oax,sa->osx", answers, project, optimize=True)
    return found.reshape(s * places, -1), responses.reshape(-1, s * places)
