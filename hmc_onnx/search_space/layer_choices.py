"""The choices of a layer for the profile: what each costs, and how sensitive the network is to it.

Decompositions of the whole layer are measured. Those of a pruned layer are read off the curve of the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from hmc_onnx.analysis.compressible import CompressibleLayer
from hmc_onnx.records.profile import KEEP, REMOVED, LayerChoice
from hmc_onnx.search_space.candidates import Candidate, Offer, Times, front, timed
from hmc_onnx.search_space.variants import Variant
from passes.core.shelf import Kept
from passes.decompose import Problem

__all__ = ["Curve", "decomposed", "layer_choices", "left_whole"]


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

    @cache
    def whole_layer() -> Problem:  # shared by the variants that lose outputs alone
        return Problem.of(subject.layer.geometry, subject.layer.weight, subject.moments.second.array)

    choices = []
    for v in own:
        whole = v.inputs == v.outputs == 0
        choice = left_whole(subject, v, times)
        choices.append(choice)
        found, known = (list(plain), list(measured)) if whole else ([], [])
        offered = timed(v.offers, v.geometry, times)
        if offered:
            problem = _of_inputs(subject, v.kept_in, repaired.get(v.inputs)) if v.inputs else whole_layer()
            found = front(problem.of_outputs(v.kept_out), offered)
            known = [curve(c.error) for c in found]
        for candidate, sensitivity in zip(found, known, strict=True):
            update = {"error": candidate.error, "sensitivity": sensitivity, "measured": whole}
            choices.append(decomposed(choice, candidate.offer).model_copy(update=update))
    return choices


def _of_inputs(subject: CompressibleLayer, kept: np.ndarray, repaired: Kept | None) -> Problem:
    """The problem of a layer that keeps some input channels, a mask (I,), with the weight that is repaired for them."""
    geometry = subject.layer.geometry
    weight = subject.layer.values if repaired is None else repaired.array
    features = np.flatnonzero(np.repeat(kept, math.prod(geometry.kernel)))
    moment = subject.moments.second.array[np.ix_(features, features)]
    part = geometry.resized(int(kept.sum()), geometry.outputs)
    return Problem.of(part, weight[:, kept].astype(np.float64), moment)


def left_whole(subject: CompressibleLayer, variant: Variant, times: Times = None) -> LayerChoice:
    """The choice to leave a variant of a layer without a decomposition, which costs no accuracy."""
    gone, geometry = variant.removed, variant.geometry
    return LayerChoice(
        inputs=variant.inputs,
        outputs=variant.outputs,
        method=REMOVED if gone else KEEP,
        rank=0,
        macs=0 if gone else subject.macs(geometry),
        parameters=0 if gone else geometry.parameters + len(subject.biases) * geometry.outputs,
        seconds=None if times is None else 0.0 if gone else times[geometry,],
        error=0.0,
        sensitivity=0.0,
        measured=True,
    )


def decomposed(choice: LayerChoice, offer: Offer) -> LayerChoice:
    """The choice to decompose what another choice leaves whole, with the costs of an offer."""
    costs = {"macs": offer.macs, "parameters": offer.parameters, "seconds": offer.seconds}
    return choice.model_copy(update={"method": offer.method, "rank": offer.rank, **costs})
