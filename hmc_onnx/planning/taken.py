"""What the integer program may take for a layer: a choice of the profile, in a precision; what it costs and loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hmc_onnx.records.profile import KEEP, REMOVED, LayerChoice, LayerProfile

__all__ = ["LEAST", "Taken", "place", "takings", "undominated"]

# Lower bound on the cost of a choice that changes something, in nats; smaller losses cannot be measured in float32.
LEAST = 1e-12


class Taken(NamedTuple):
    """A choice of a layer, in the precision that is served, or in float32 within a network that is served in INT8."""

    layer: LayerProfile
    choice: LayerChoice
    in_float: bool = False

    @property
    def seconds(self) -> float | None:
        """Seconds of the layer's chain."""
        return self.choice.float_seconds if self.in_float else self.choice.seconds

    @property
    def sensitivity(self) -> float:
        """Nats that the network loses by it."""
        return self.choice.sensitivity + (0.0 if self.in_float else self.choice.rounding)

    @property
    def decomposes(self) -> bool:
        """Whether it decomposes the layer."""
        return self.choice.method not in (KEEP, REMOVED)

    @property
    def unchanged(self) -> bool:
        """Whether it leaves the layer as it is served if nothing is changed."""
        return self.choice.inputs == self.choice.outputs == 0 and self.choice.method == KEEP and not self.in_float

    @property
    def loss(self) -> float:
        """The objective's value: the sensitivity, but at least `LEAST` if it changes something beside the channels."""
        return max(self.sensitivity, LEAST) if self.decomposes or self.in_float else self.sensitivity

    def cost(self, what: str) -> float:
        """Seconds, MACs or parameters."""
        return float((self.seconds if what == "seconds" else getattr(self.choice, what)) or 0)


def takings(layer: LayerProfile) -> Iterator[Taken]:
    """The choices of a layer; in a network that is served in INT8, each that may stay in float32 is there twice."""
    for c in layer.choices:
        yield Taken(layer, c)
        if c.float_seconds is not None:
            yield Taken(layer, c, in_float=True)


def place(taken: Taken) -> tuple[str, int, int, bool]:
    """The layer, the choices for its channels, and the precision: what a choice of another decomposition shares."""
    return taken.layer.name, taken.choice.inputs, taken.choice.outputs, taken.in_float


def undominated(choices: list[Taken], costs: list[str]) -> list[Taken]:
    """The choices that no other choice for the same channels equals or beats in all costs and in sensitivity.

    Those in float32 are compared among themselves, as not every target allows them.
    """
    kept: dict[tuple[str, int, int, bool], list[tuple[tuple[float, ...], Taken]]] = {}
    valued = [((*(t.cost(k) for k in costs), t.loss), t) for t in choices]
    for value, taken in sorted(valued, key=lambda pair: pair[0]):
        own = kept.setdefault(place(taken), [])
        if not any(all(a <= b for a, b in zip(other, value, strict=True)) for other, _ in own):
            own.append((value, taken))
    return [taken for own in kept.values() for _, taken in own]
