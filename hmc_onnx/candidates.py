"""Candidates, in closed form: decompositions of a layer, whole or with some of its channels gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hmc_onnx.elimination import Consumer, Elimination, eliminate
from hmc_onnx.profiles import KEEP, GroupProfile, LayerChoice
from hmc_onnx.subjects import Subject
from passes.channels import ChannelGroup
from passes.decompose import DECOMPOSITIONS, chain_macs, chain_parameters, compose, error
from passes.layers import Geometry

__all__ = ["Candidate", "Curve", "decompositions", "front", "layer_choices", "removal"]

# Shares of a layer's MACs at which each decomposition is tried: alone, and on top of pruning.
RATIOS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15)
RATIOS_WHEN_PRUNED = (0.7, 0.5, 0.35, 0.22)
# Shares of a group's channels that are kept.
SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class Candidate:
    """A decomposition at a rank. `error` is the share of the layer's response that it loses.

    Of a layer some of whose channels are gone, it is the share of the response that is left: the channels
    that stay are those that matter more.
    """

    method: str
    rank: int
    macs: int
    parameters: int
    error: float
    links: tuple[Geometry, ...]
    factors: tuple[np.ndarray, ...]

    @property
    def kernel(self) -> np.ndarray:
        """The dense kernel that the chain amounts to, made anew at each call: of all candidates they are large."""
        return compose(self.links, self.factors)


def front(
    geometry: Geometry,
    weight: np.ndarray,
    moment: np.ndarray,
    size: Sequence[int],
    *,
    align: int,
    methods: Sequence[str],
    ratios: Sequence[float],
) -> list[Candidate]:
    """The decompositions of a layer that no cheaper one beats in error, cheapest last.

    Only these are worth measuring: at equal cost a larger local error does not make a better network.
    """
    response = max(error(weight, np.zeros_like(weight), moment), np.finfo(float).tiny)
    found = []
    for name in methods:
        method = DECOMPOSITIONS[name]
        if method.why_not(geometry):
            continue
        solve = method.solver(geometry, weight, moment)
        for rank in sorted({r for ratio in ratios if (r := method.rank_for(geometry, size, ratio, align))}):
            links = method.links(geometry, rank)
            factors = solve(rank)
            loss = error(weight, compose(links, factors), moment) / response
            cost = (chain_macs(links, size), chain_parameters(links))
            found.append(Candidate(name, rank, *cost, loss, links, factors))
    found.sort(key=lambda c: (c.macs, c.error))
    best: list[Candidate] = []
    for candidate in found:
        if not best or candidate.error < best[-1].error * (1 - 1e-9):
            best.append(candidate)
    return best[::-1]


def decompositions(subject: Subject, align: int) -> list[Candidate]:
    """The front of a whole layer over all methods; a grouped Conv has none."""
    if subject.grouped:
        return []
    return front(
        subject.layer.geometry,
        subject.layer.weight,
        subject.moments.second,
        subject.size,
        align=align,
        methods=list(DECOMPOSITIONS),
        ratios=RATIOS,
    )


def removal(group: ChannelGroup, layers: dict[str, Subject], align: int) -> Callable[[], Elimination]:
    """The elimination of a group's channels down to each count on offer, ready to run (and to be sent away)."""
    consumers = [
        Consumer(layers[s.node.name].layer.weight, layers[s.node.name].moments.second, c)
        for s, c in group.members("consumes")
    ]
    keeps = {max(align, int(group.size * share) // align * align) for share in SHARES}
    counts = sorted(group.size - k for k in keeps if k < group.size)
    ends = [*group.members("produces"), *group.members("consumes")]
    floors = [*(classes for _, classes in ends), *group.parts]
    return partial(eliminate, consumers, group.size, counts, floors, align)


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


def layer_choices(
    subject: Subject,
    plain: Sequence[Candidate],
    measured: Sequence[float],
    input_group: tuple[GroupProfile, dict[int, np.ndarray]] | None,
    output_group: GroupProfile | None,
    align: int,
) -> list[LayerChoice]:
    """Every choice of a layer, for each choice of its input and output group.

    Args:
        subject: the layer.
        plain: its decompositions when whole, and
        measured: their sensitivities.
        input_group: its input group's profile, with this layer's repaired weight for each removal count.
        output_group: its output group's profile.
        align: ranks are multiples of this.
    """
    geometry = subject.layer.geometry
    curve = Curve([(c.error, s) for c, s in zip(plain, measured, strict=True)])
    methods = sorted({c.method for c in plain})
    moment = np.zeros((0, 0)) if subject.grouped else subject.moments.second
    choices = []
    for a, gone_in in enumerate(_removed(input_group[0] if input_group else None)):
        kept_in = _kept(subject.input_classes, gone_in, geometry.inputs)
        weight = subject.layer.weight
        if input_group and gone_in and not subject.grouped:
            weight = input_group[1][len(gone_in)]
        for b, gone_out in enumerate(_removed(output_group)):
            if subject.grouped and a != b:  # the same group at both ends
                continue
            kept_out = _kept(subject.output_classes, gone_out, geometry.outputs)
            part = geometry.resized(int(kept_in.sum()), int(kept_out.sum()))
            choice = LayerChoice(
                inputs=a,
                outputs=b,
                method=KEEP,
                rank=0,
                macs=part.macs(subject.size),
                parameters=part.parameters + part.outputs,
                error=0.0,
                sensitivity=0.0,
                measured=True,
            )
            choices.append(choice)
            if a == b == 0:
                found, known = list(plain), list(measured)
            elif subject.grouped or (a and b):  # at both ends it stays dense, or the combinations would be too many
                found, known = [], []
            else:
                features = np.flatnonzero(np.repeat(kept_in, math.prod(geometry.kernel)))
                found = front(
                    part,
                    weight[np.ix_(kept_out, kept_in)],
                    moment[np.ix_(features, features)],
                    subject.size,
                    align=align,
                    methods=methods,
                    ratios=RATIOS_WHEN_PRUNED,
                )
                known = [curve(c.error) for c in found]
            for candidate, sensitivity in zip(found, known, strict=True):
                update = {
                    "method": candidate.method,
                    "rank": candidate.rank,
                    "macs": candidate.macs,
                    "parameters": candidate.parameters,
                    "error": candidate.error,
                    "sensitivity": sensitivity,
                    "measured": a == b == 0,
                }
                choices.append(choice.model_copy(update=update))
    return choices


def _removed(group: GroupProfile | None) -> list[list[int]]:
    return [c.removed for c in group.choices] if group else [[]]


def _kept(classes: np.ndarray | None, removed: Sequence[int], channels: int) -> np.ndarray:
    return np.ones(channels, bool) if classes is None else ~np.isin(classes, removed)
