"""What a decomposition is: a chain of plain Convs that stands for one Conv, and how to find its weights.

A layer y = W x + b with input patches x ∈ R^n (n = I k k, centred second moment M = E[x xᵀ]) loses
E‖(W - Ŵ) x‖² = tr((W - Ŵ) M (W - Ŵ)ᵀ) when a chain that amounts to Ŵ takes its place. Every decomposition
here finds weights that make this small, for a given rank; with M = I it is the weights' own error.

Links carry no non-linearity and no bias but the last's, and no axis of the kernel is longer than 1 in more
than one of them, so a chain amounts to one dense kernel (`compose`). That makes every candidate for a layer
just another weight for it: this is how candidates are measured without building a graph for each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from passes.core.declined import Declined
from passes.graph.layers import Geometry

__all__ = [
    "Decomposition",
    "Factors",
    "Solver",
    "chain_macs",
    "chain_parameters",
    "compose",
    "error",
    "mode_moment",
]


Factors = tuple[np.ndarray, ...]
Solver = Callable[[int], Factors]


class Decomposition(ABC):
    """One way to write a Conv or Gemm as a chain of links; stateless."""

    name: ClassVar[str]

    @abstractmethod
    def why_not(self, geometry: Geometry, node: str = "") -> Declined | None:
        """Why it does not apply to a layer of this geometry, named `node`; None if it does."""

    @abstractmethod
    def max_rank(self, geometry: Geometry) -> int:
        """The smallest rank at which the chain can be exact for every weight (for CP: that is tried)."""

    @abstractmethod
    def links(self, geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
        """The chain's geometries, first to last."""

    @abstractmethod
    def solver(self, geometry: Geometry, weight: np.ndarray, moment: np.ndarray) -> Solver:
        """What finds the links' weights for a rank; what all ranks share is computed here, once.

        Args:
            geometry: the layer's.
            weight: (O, I, *kernel), float64.
            moment: (n, n) second moment of its patches in the order (I, *kernel), float64.

        Returns:
            A function of the rank, from 1 to `max_rank`, to float64 arrays, one a link, each of the link's
            `weight_shape`.
        """

    def factors(self, geometry: Geometry, weight: np.ndarray, moment: np.ndarray, rank: int) -> Factors:
        """The links' weights at one rank."""
        return self.solver(geometry, weight, moment)(rank)

    def rank_for(self, geometry: Geometry, size: Sequence[int], ratio: float, align: int) -> int | None:
        """The largest rank, a multiple of `align`, at `ratio` of the layer's MACs or less; None if none is."""
        budget = ratio * geometry.macs(size)
        unit = chain_macs(self.links(geometry, align), size)
        rank = min(max(int(budget / max(unit, 1)) * align, align), self.max_rank(geometry) // align * align)
        while rank >= align and chain_macs(self.links(geometry, rank), size) > budget:
            rank -= align
        return rank if rank >= align else None


def chain_macs(links: Sequence[Geometry], size: Sequence[int]) -> int:
    """Multiply-accumulates of a chain for one input of a spatial size."""
    macs = 0
    for link in links:
        macs += link.macs(size)
        size = link.output_size(size)
    return macs


def chain_parameters(links: Sequence[Geometry]) -> int:
    """Weights of a chain, with the last link's bias."""
    return sum(link.parameters for link in links) + links[-1].outputs


def compose(links: Sequence[Geometry], factors: Sequence[np.ndarray]) -> np.ndarray:
    """The one dense kernel (O, I, *kernel) that a chain amounts to."""
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
    """(I, I): the patches' second moment over the channels, averaged over the kernel's places."""
    i, k = geometry.inputs, math.prod(geometry.kernel)
    return np.einsum("akbk->ab", moment.reshape(i, k, i, k)) / k
