"""Candidates in closed form: decompositions of a whole layer, or of one with some of its channels removed.

A decomposition at a rank is an `Offer` as long as only its cost is known, a `Candidate` once its weights are, and a
`LayerChoice` of the profile once its sensitivity is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from hmc_onnx.analysis.compressible import CompressibleLayer, readers
from hmc_onnx.records.profile import KEEP, REMOVED, GroupProfile, LayerChoice
from hmc_onnx.search_space.elimination import Consumer, Floors, eliminate
from hmc_onnx.search_space.pruning_steps import carried, steps
from passes.channels import ChannelGroup
from passes.core.shelf import MEMORY, Kept, Shelf
from passes.decompose import DECOMPOSITIONS, chain_macs, chain_parameters, compose
from passes.graph.layers import Geometry

__all__ = [
    "Candidate",
    "Curve",
    "Offer",
    "Times",
    "decompositions",
    "front",
    "layer_choices",
    "offers",
    "removal",
    "timed",
    "variants",
    "whole_offers",
]

# Seconds of a layer's chains, by their links; None where latency is not measured.
Times = Mapping[tuple[Geometry, ...], float] | None

# Shares of a layer's MACs at which each decomposition is tried: on the whole layer, and on the pruned one.
RATIOS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15)
RATIOS_WHEN_PRUNED = (0.7, 0.5, 0.35, 0.22)


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


def front(
    geometry: Geometry, weight: np.ndarray, moment: np.ndarray, offered: Sequence[Offer], shelf: Shelf = MEMORY
) -> list[Candidate]:
    """The Pareto front of local error against cost, as candidates, the cheapest last.

    No other offer is worth measuring: at equal or higher cost, a larger local error does not make a better network.

    Every decomposition ends in a least-squares solution, whose residual is orthogonal to it. So the error
    tr((W - Ŵ) M (W - Ŵ)ᵀ) is tr(W M Wᵀ) - tr(Ŵ M Wᵀ), and the product W M is computed once for all offers.

    Args:
        geometry: geometry of the layer.
        weight: its weight, (O, I, *kernel), float64.
        moment: centred second moment of the layer's patches, (n, n), float64.
        offered: the offers; those of one method are next to each other.
        shelf: where the factors are stored.
    """
    flat = weight.reshape(len(weight), -1)
    answers = flat @ moment
    response = float(np.vdot(flat, answers))
    found: list[tuple[Offer, float, list[np.ndarray]]] = []
    for name, own in groupby(offered, key=lambda o: o.method):
        solve = DECOMPOSITIONS[name].solver(geometry, weight, moment)
        for offer in own:
            factors = solve(offer.rank)
            explained = float(np.vdot(compose(offer.links, factors).reshape(flat.shape), answers))
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
    return _over_all_uses(subject, found)


def _over_all_uses(subject: CompressibleLayer, offered: list[Offer]) -> list[Offer]:
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
    return front(geometry, subject.layer.weight, subject.moments.second.array, offered, shelf)


def removal(
    group: ChannelGroup, layers: dict[str, CompressibleLayer], align: int, fine: bool = True, shelf: Shelf = MEMORY
) -> tuple[Any, ...]:
    """The task of eliminating a group's channels for all pruning steps: `eliminate` and its arguments."""
    consumers = [Consumer(shelf.keep(s.layer.values), s.moments.second, c) for s, c in readers(group, layers)]
    on_offer = steps(group, align, fine)
    floors = Floors(carried(group), align)
    return eliminate, consumers, group.size, on_offer.counts, floors, on_offer, shelf


class Curve:
    """A layer's sensitivity as a function of its local error: log-log interpolation between measured points.

    Below the smallest and above the largest point it is proportional to the error, because the KL divergence is
    quadratic in small changes and the error is squared already.

    Args:
        points: measured pairs of local error and sensitivity in nats.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        usable = sorted((e, s) for e, s in points if e > 0 and s > 0)
        self._errors = np.log([e for e, _ in usable])
        self._sensitivities = np.maximum.accumulate(np.log([s for _, s in usable])) if usable else self._errors

    def __call__(self, error: float) -> float:
        """The sensitivity in nats at a local error; the error itself if there is no usable point."""
        if error <= 0 or not len(self._errors):
            return max(error, 0.0)
        at = math.log(error)
        inside = min(max(at, self._errors[0]), self._errors[-1])
        return float(math.exp(np.interp(inside, self._errors, self._sensitivities) + at - inside))


@dataclass(frozen=True)
class Variant:
    """A layer as it is left by one choice for its input group and one for its output group.

    Attributes:
        inputs, outputs: indices of these choices.
        kept_in, kept_out: masks of the input channels (I,) and output channels (O,) that stay; one of the masks is all
            False if the layer is removed with its residual branch.
        geometry: geometry of the remaining layer.
        offers: the decompositions to try on it.
    """

    inputs: int
    outputs: int
    kept_in: np.ndarray
    kept_out: np.ndarray
    geometry: Geometry
    offers: list[Offer]

    @property
    def removed(self) -> bool:
        """Whether the layer is removed with its residual branch."""
        return not (self.kept_in.any() and self.kept_out.any())

    @property
    def chains(self) -> list[tuple[Geometry, ...]]:
        """The chains whose times are needed: the remaining layer as a chain of one link, and those of the offers."""
        return [] if self.removed else [(self.geometry,), *(o.links for o in self.offers)]


def variants(
    subject: CompressibleLayer,
    input_group: GroupProfile | None,
    output_group: GroupProfile | None,
    align: int,
    methods: Sequence[str],
    fine: bool = True,
) -> Iterator[Variant]:
    """Yield the layer for each pair of choices of its input and output group.

    A layer that is pruned at one end has decompositions on offer. A layer that is pruned at both ends has none, because
    the combinations would be too many. Those of the whole layer are not included: see `whole_offers`.

    Args:
        subject: the layer.
        input_group, output_group: profiles of its groups; None for a group that it does not have or that cannot be
            pruned.
        align, methods: as for `offers`.
        fine: whether to use all of `RATIOS_WHEN_PRUNED`; else every second one.
    """
    geometry, ratios = subject.layer.geometry, RATIOS_WHEN_PRUNED if fine else RATIOS_WHEN_PRUNED[1::2]
    for a, gone_in in enumerate(_removed(input_group)):
        kept_in = _kept(subject.input_classes, gone_in, geometry.inputs)
        for b, gone_out in enumerate(_removed(output_group)):
            # a grouped Conv that loses whole groups has the same channel group at both ends
            if subject.grouped and subject.input_group is not None and a != b:
                continue
            kept_out = _kept(subject.output_classes, gone_out, geometry.outputs)
            if not kept_in.any() and kept_out.any() and not subject.ends_branch:  # the branch would go on
                continue
            offered: list[Offer] = []
            if not (kept_in.any() and kept_out.any()):
                yield Variant(a, b, kept_in, kept_out, geometry, offered)
                continue
            part = geometry.resized(int(kept_in.sum()), int(kept_out.sum()))
            if not subject.grouped and (a == 0) != (b == 0):
                found = offers(part, subject.size, align, methods, ratios, subject.maps)
                offered = _over_all_uses(subject, found)
            yield Variant(a, b, kept_in, kept_out, part, offered)


def layer_choices(
    subject: CompressibleLayer,
    plain: Sequence[Candidate],
    measured: Sequence[float],
    own: Sequence[Variant],
    repaired: Mapping[int, Kept],
    times: Times = None,
) -> list[LayerChoice]:
    """All choices of a layer, for each choice of its input and output group.

    Args:
        subject: the layer.
        plain: the decompositions of the whole layer.
        measured: their sensitivities in nats, in the same order.
        own: the layer's `variants`.
        repaired: the layer's repaired weight (O, I, *kernel), by index of its input group's choice; none for the first.
        times: times of all chains of the layer.
    """
    curve = Curve([(c.error, s) for c, s in zip(plain, measured, strict=True)])
    moment = subject.moments.second.array
    choices = []
    for v in own:
        whole = v.inputs == v.outputs == 0
        choice = LayerChoice(
            inputs=v.inputs,
            outputs=v.outputs,
            method=REMOVED if v.removed else KEEP,
            rank=0,
            macs=0 if v.removed else subject.macs(v.geometry),
            parameters=0 if v.removed else v.geometry.parameters + len(subject.biases) * v.geometry.outputs,
            seconds=None if times is None else 0.0 if v.removed else times[v.geometry,],
            error=0.0,
            sensitivity=0.0,
            measured=True,
        )
        choices.append(choice)
        found, known = (list(plain), list(measured)) if whole else ([], [])
        offered = timed(v.offers, v.geometry, times)
        if offered:
            features = np.flatnonzero(np.repeat(v.kept_in, math.prod(v.geometry.kernel)))
            whole_weight = repaired[v.inputs].array if v.inputs in repaired else subject.layer.values
            weight = whole_weight[np.ix_(v.kept_out, v.kept_in)].astype(np.float64)
            found = front(v.geometry, weight, moment[np.ix_(features, features)], offered)
            known = [curve(c.error) for c in found]
        for candidate, sensitivity in zip(found, known, strict=True):
            offer = candidate.offer
            update = {
                "method": offer.method,
                "rank": offer.rank,
                "macs": offer.macs,
                "parameters": offer.parameters,
                "seconds": offer.seconds,
                "error": candidate.error,
                "sensitivity": sensitivity,
                "measured": whole,
            }
            choices.append(choice.model_copy(update=update))
    return choices


def _removed(group: GroupProfile | None) -> list[list[int]]:
    return [c.removed for c in group.choices] if group else [[]]


def _kept(classes: np.ndarray | None, removed: Sequence[int], channels: int) -> np.ndarray:
    return np.ones(channels, bool) if classes is None else ~np.isin(classes, removed)
