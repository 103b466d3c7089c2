"""What two models compared side by side have come to. Typed, versioned, JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes.core.records import Frozen

__all__ = ["Side", "Timing", "Verification", "Visited"]


class Side(Frozen):
    """One model: MACs of an image, parameters, bytes of the file, and top-1 where there are labels."""

    macs: int
    parameters: int
    bytes: int
    top1: float | None


class Timing(Frozen):
    """Milliseconds of a run at a batch size, the two models taking turns, and the ratio b / a.

    See `calib.measure.latency`. `uncertainty` is the half-width of a 95 % interval of the ratio.
    """

    batch: int
    a: float
    b: float
    ratio: float
    uncertainty: float


class Visited(Frozen):
    """A network that was tried in a search for the fastest within a bound on the loss.

    Attributes:
        target: share of the original's time that was asked for.
        latency: share that the network takes.
        drop: loss of top-1 (without labels: share of images whose class changes) on the images to search with, and
        confirmed: on others.
        uncertainty: half-width of the 95 % interval of `confirmed`.
        chosen: whether it is the one that was taken.
    """

    target: float
    latency: float
    drop: float
    confirmed: float
    uncertainty: float
    chosen: bool


class Verification(Frozen):
    """Model b against model a over some images.

    Attributes:
        kl: mean KL divergence of b's class scores from a's, in nats, with that of other outputs (`divergence`).
        agreement: share of images on which both choose the same class.
        difference: largest absolute difference of an output.
        images: how many, and `source` which.
        threads: intra-op threads of onnxruntime with which both were run; None in reports of earlier versions.
        curve: what was visited, where the network was searched for.
    """

    version: Literal[1] = 1
    a: Side
    b: Side
    kl: float
    agreement: float
    difference: float
    images: int
    source: str
    timings: list[Timing]
    threads: int | None = None
    curve: list[Visited] = Field(default_factory=list)
