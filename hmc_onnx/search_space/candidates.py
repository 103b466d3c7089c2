"""Candidates in closed form: decompositions of a whole layer, or of one with some of its channels removed.

A decomposition at a rank is an `Offer` as long as only its cost is known, a `Candidate` once its weights are, and a
`LayerChoice` of the profile once its sensitivity is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from hmc_onnx.analysis.compressible import CompressibleLayer
from passes.core.shelf import MEMORY, Kept, Shelf
from passes.decompose import DECOMPOSITIONS, Problem, chain_macs, chain_parameters, compose
from passes.graph.layers import Geometry

__all__ = [
    "Candidate",
    "Offer",
    "Times",
    "decompositions",
    "front",
    "offers",
    "over_all_uses",
    "timed",
    "whole_offers",
]

# Seconds of a layer's chains, by their links; None where latency is not measured.
Times = Mapping[tuple[Geometry, ...], float] | None

# Shares of a layer's MACs at which each decomposition of the whole layer is tried.
RATIOS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15)


@dataclass(frozen=True)
class Offer:
    """A decomposition at a rank, before its weights are known; `seconds` is None where latency is not measured."""

    method: str
    rank: int
    links: tuple[Geometry, ...]
    macs: int
    parameters: int
    seconds: float | None = None

    @property
    def cost(self) -> float:
        """The cost by which the candidates of one layer are compared: seconds where they are measured, else MACs."""
        return self.macs if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Candidate:
    """An offer with its weights.

    Attributes:
        offer: the decomposition and its cost.
        error: the share of the layer's response (squared) that it loses; of a pruned layer, the share of the response
            that pruning has left, as the channels that stay matter more.
        factors: the weights of the chain's links, float32.
    """

    offer: Offer
    error: float
    factors: tuple[Kept, ...]

    @property
    def kernel(self) -> np.ndarray:
        """The dense kernel (O, I, *kernel) equivalent to the chain. It is computed at each call, to save memory."""
        return compose(self.offer.links, [f.array for f in self.factors])


def offers(
    geometry: Geometry,
    size: Sequence[int],
    align: int,
    methods: Sequence[str],
    ratios: Sequence[float],
    maps: int = 1,
) -> list[Offer]:
    """Every decomposition of a layer at the largest aligned rank within each share of its MACs.

    Args:
        geometry: geometry of the layer.
        size: spatial size of its input.
        align: ranks are multiples of this.
        methods: names of the decompositions.
        ratios: the shares of MACs, between 0 and 1.
        maps: number of inputs of that size that the layer processes per image.
    """
    found = []
    for name in methods:
        method = DECOMPOSITIONS[name]
        if method.why_not(geometry):
            continue
        for rank in sorted({r for ratio in ratios if (r := method.rank_for(geometry, size, ratio, align))}):
            links = method.links(geometry, rank)
            found.append(Offer(name, rank, links, chain_macs(links, size) * maps, chain_parameters(links)))
    return found


def timed(offered: Sequence[Offer], whole: Geometry, times: Times) -> list[Offer]:
    """The offers that are faster than the layer itself, with their seconds; without times, all offers."""
    if times is None:
        return list(offered)
    found = [replace(o, seconds=times[o.links]) for o in offered]
    return [o for o in found if o.cost < times[whole,]]


def front(problem: Problem, offered: Sequence[Offer], shelf: Shelf = MEMORY) -> list[Candidate]:
    """The Pareto front of local error against cost, as candidates, the cheapest last.

    No other offer is worth measuring: at equal or higher cost, a larger local error does not make a better network.

    Every decomposition ends in a least-squares solution, whose residual is orthogonal to it. So the error
    tr((W - Ŵ) M (W - Ŵ)ᵀ) is tr(W M Wᵀ) - tr(Ŵ M Wᵀ).

    Args:
        problem: the layer.
        offered: the offers; those of one method are next to each other.
        shelf: where the factors are stored.
    """
    response = problem.response
    found: list[tuple[Offer, float, list[np.ndarray]]] = []
    for name, own in groupby(offered, key=lambda o: o.method):
        solve = DECOMPOSITIONS[name].solver(problem)
        for offer in sorted(own, key=lambda o: o.rank, reverse=True):
            factors = solve(offer.rank)
            explained = float(np.vdot(compose(offer.links, factors).reshape(problem.answers.shape), problem.answers))
            loss = max(response - explained, 0.0) / max(response, np.finfo(float).tiny)
            found.append((offer, loss, [f.astype(np.float32) for f in factors]))
    found.sort(key=lambda f: (f[0].cost, f[1]))
    best: list[Candidate] = []
    for offer, loss, arrays in found:
        if not best or loss < best[-1].error * (1 - 1e-9):
            best.append(Candidate(offer, loss, tuple(map(shelf.keep, arrays))))
    return best[::-1]


def whole_offers(subject: CompressibleLayer, align: int, fine: bool = True) -> list[Offer]:
    """The offers for a whole layer; none for a grouped Conv. Without `fine`, only every second of `RATIOS` is used."""
    if subject.grouped:
        return []
    ratios = RATIOS if fine else RATIOS[1::2]
    found = offers(subject.layer.geometry, subject.size, align, list(DECOMPOSITIONS), ratios, subject.maps)
    return over_all_uses(subject, found)


def over_all_uses(subject: CompressibleLayer, offered: list[Offer]) -> list[Offer]:
    """The offers with the MACs and the biases of all uses of the layer; `offers` counts those of the first."""
    if not subject.further:
        return offered
    biases = len(subject.further_biases)
    return [
        replace(o, macs=subject.macs(*o.links), parameters=o.parameters + biases * o.links[-1].outputs) for o in offered
    ]


def decompositions(
    subject: CompressibleLayer, offered: Sequence[Offer], times: Times = None, shelf: Shelf = MEMORY
) -> list[Candidate]:
    """The Pareto front of a whole layer over its offers; with times, over those that are faster than the layer."""
    geometry = subject.layer.geometry
    offered = timed(offered, geometry, times)
    if not offered:
        return []
    return front(Problem.of(geometry, subject.layer.weight, subject.moments.second.array), offered, shelf)
