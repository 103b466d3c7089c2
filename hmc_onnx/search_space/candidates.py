"""Candidates, in closed form: decompositions of a layer, whole or with some of its channels gone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from hmc_onnx.analysis.subjects import Subject
from hmc_onnx.records.profile import KEEP, REMOVED, GroupProfile, LayerChoice
from hmc_onnx.search_space.elimination import Consumer, eliminate
from hmc_onnx.search_space.pruning_steps import floors, steps
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

# Seconds of a layer's chains, by their links; None where latency does not matter.
Times = Mapping[tuple[Geometry, ...], float] | None

# Shares of a layer's MACs at which each decomposition is tried: alone, and on top of pruning.
RATIOS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15)
RATIOS_WHEN_PRUNED = (0.7, 0.5, 0.35, 0.22)


@dataclass(frozen=True)
class Offer:
    """A decomposition at a rank, before its weights are known; `seconds` where latency is measured."""

    method: str
    rank: int
    links: tuple[Geometry, ...]
    macs: int
    parameters: int
    seconds: float | None = None

    @property
    def cost(self) -> float:
        """What candidates for one layer are compared by: seconds where they are measured, else MACs."""
        return self.macs if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Candidate:
    """An offer with its weights, float32. `error` is the share of the layer's response that it loses.

    Of a layer some of whose channels are gone, it is the share of the response that is left: the channels
    that stay are those that matter more.
    """

    offer: Offer
    error: float
    factors: tuple[Kept, ...]

    @property
    def kernel(self) -> np.ndarray:
        """The dense kernel that the chain amounts to, made anew at each call: of all candidates they are large."""
        return compose(self.offer.links, [f.array for f in self.factors])


def offers(
    geometry: Geometry, size: Sequence[int], align: int, methods: Sequence[str], ratios: Sequence[float]
) -> list[Offer]:
    """Every decomposition of a layer at the largest aligned rank within each share of its MACs."""
    found = []
    for name in methods:
        method = DECOMPOSITIONS[name]
        if method.why_not(geometry):
            continue
        for rank in sorted({r for ratio in ratios if (r := method.rank_for(geometry, size, ratio, align))}):
            links = method.links(geometry, rank)
            found.append(Offer(name, rank, links, chain_macs(links, size), chain_parameters(links)))
    return found


def timed(offered: Sequence[Offer], whole: Geometry, times: Times) -> list[Offer]:
    """The offers that are faster than the layer itself, with their seconds; all of them where nothing is timed."""
    if times is None:
        return list(offered)
    found = [replace(o, seconds=times[o.links]) for o in offered]
    return [o for o in found if o.cost < times[whole,]]


def front(
    geometry: Geometry, weight: np.ndarray, moment: np.ndarray, offered: Sequence[Offer], shelf: Shelf = MEMORY
) -> list[Candidate]:
    """The offers that no cheaper one beats in error, cheapest last.

    Only these are worth measuring: at equal cost a larger local error does not make a better network.

    Every decomposition ends in a least-squares solution, to which what is left is orthogonal: tr((W - Ŵ) M (W - Ŵ)ᵀ) is
    tr(W M Wᵀ) - tr(Ŵ M Wᵀ), of which the product with M is the same for all.
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


def whole_offers(subject: Subject, align: int, fine: bool = True) -> list[Offer]:
    """What is on offer for a whole layer; nothing for a grouped Conv. Not `fine`: every second share of its MACs."""
    if subject.grouped:
        return []
    ratios = RATIOS if fine else RATIOS[1::2]
    return offers(subject.layer.geometry, subject.size, align, list(DECOMPOSITIONS), ratios)


def decompositions(
    subject: Subject, offered: Sequence[Offer], times: Times = None, shelf: Shelf = MEMORY
) -> list[Candidate]:
    """The front of a whole layer over what is on offer for it."""
    geometry = subject.layer.geometry
    offered = timed(offered, geometry, times)
    if not offered:
        return []
    return front(geometry, subject.layer.weight, subject.moments.second.array, offered, shelf)


def removal(
    group: ChannelGroup, layers: dict[str, Subject], align: int, fine: bool = True, shelf: Shelf = MEMORY
) -> tuple[Any, ...]:
    """`eliminate`, and its arguments for a group's channels down to each count on offer."""
    consumers = [
        Consumer(shelf.keep(layers[s.node.name].layer.values), layers[s.node.name].moments.second, c)
        for s, c in group.members("consumes")
    ]
    on_offer = steps(group, align, fine)
    return eliminate, consumers, group.size, on_offer.counts, floors(group), align, on_offer, shelf


class Curve:
    """A layer's sensitivity as a function of its local error: log-log between measured points.

    Below the smallest and above the largest it is proportional, as the KL divergence is quadratic in small
    changes and the error is a squared one.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        usable = sorted((e, s) for e, s in points if e > 0 and s > 0)
        self._errors = np.log([e for e, _ in usable])
        self._sensitivities = np.maximum.accumulate(np.log([s for _, s in usable])) if usable else self._errors

    def __call__(self, error: float) -> float:
        """Nats at a local error; with nothing measured, the error itself."""
        if error <= 0 or not len(self._errors):
            return max(error, 0.0)
        at = math.log(error)
        inside = min(max(at, self._errors[0]), self._errors[-1])
        return float(math.exp(np.interp(inside, self._errors, self._sensitivities) + at - inside))


@dataclass(frozen=True)
class Variant:
    """A layer as its input and output group's choices leave it, with what is on offer for it then.

    Of a layer that is removed nothing is kept.
    """

    inputs: int
    outputs: int
    kept_in: np.ndarray
    kept_out: np.ndarray
    geometry: Geometry
    offers: list[Offer]

    @property
    def removed(self) -> bool:
        """Whether it goes with its residual branch."""
        return not (self.kept_in.any() and self.kept_out.any())

    @property
    def chains(self) -> list[tuple[Geometry, ...]]:
        """Of the layer undecomposed, and of the offers."""
        return [] if self.removed else [(self.geometry,), *(o.links for o in self.offers)]


def variants(
    subject: Subject,
    input_group: GroupProfile | None,
    output_group: GroupProfile | None,
    align: int,
    methods: Sequence[str],
    fine: bool = True,
) -> Iterator[Variant]:
    """The layer with each choice of its groups.

    It is decomposed whole, or pruned at one end: at both it stays dense, or the combinations would be too many.
    """
    geometry, ratios = subject.layer.geometry, RATIOS_WHEN_PRUNED if fine else RATIOS_WHEN_PRUNED[1::2]
    for a, gone_in in enumerate(_removed(input_group)):
        kept_in = _kept(subject.input_classes, gone_in, geometry.inputs)
        for b, gone_out in enumerate(_removed(output_group)):
            if subject.grouped and subject.input_group is not None and a != b:  # the same group at both ends
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
                offered = offers(part, subject.size, align, methods, ratios)
            yield Variant(a, b, kept_in, kept_out, part, offered)


def layer_choices(
    subject: Subject,
    plain: Sequence[Candidate],
    measured: Sequence[float],
    own: Sequence[Variant],
    repaired: Mapping[int, Kept],
    times: Times = None,
) -> list[LayerChoice]:
    """Every choice of a layer, for each choice of its input and output group.

    Args:
        subject: the layer.
        plain: its decompositions when whole, and
        measured: their sensitivities.
        own: its `variants`.
        repaired: its weight, solved again, for each choice of its input group but the first.
        times: of all its chains.
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
            macs=0 if v.removed else v.geometry.macs(subject.size),
            parameters=0 if v.removed else v.geometry.parameters + v.geometry.outputs,
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
