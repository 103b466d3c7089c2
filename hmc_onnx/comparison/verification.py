"""Two models compared: signature, cost, fidelity, accuracy and latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from pydantic import Field

from calib.data.calibration import CalibrationData
from calib.measure.divergence import divergence, top1
from calib.measure.latency import DISTURBED, PATIENCE, Timings, calm, interleaved
from calib.runtime.batching import at_once, batch_size, declared_batch, input_shapes
from calib.runtime.observing import observe
from calib.runtime.sessions import CPU, Runtime, Session
from hmc_onnx.analysis.model_inputs import fit
from passes.core.errors import DataError, ModelError
from passes.core.records import Frozen
from passes.graph.cost import total
from passes.graph.model import Model
from passes.graph.protos import byte_size
from passes.normal_form.normalise import normalise

__all__ = ["BATCHES", "Side", "Timing", "Verification", "Visited", "check_labels", "judged", "same_signature", "verify"]


# Images run at once where the model leaves the number open.
AT_ONCE = 128
# Times that each batch size is come back to.
ROUNDS = 3
# Batch sizes at which latency is measured.
BATCHES = (1, 8, 64)


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


def same_signature(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """Check that b can stand in for a: the same inputs, outputs, types, axes and order.

    Raises:
        ModelError: it cannot; the message names the first difference.
    """
    for what in ("input", "output"):
        ours, theirs = (_values(m, what) for m in (a, b))
        if list(ours) != list(theirs):
            raise ModelError(
                f"the models' {what}s differ: {', '.join(ours)} against {', '.join(theirs)}: give a model and the one "
                "that it was made from"
            )
        for name, value in ours.items():
            if value.type != theirs[name].type:
                raise ModelError(f"the models' {what} '{name}' differs in type or shape: compare like with like")


def _values(proto: onnx.ModelProto, what: str) -> dict[str, onnx.ValueInfoProto]:
    defaults = {t.name for t in proto.graph.initializer} if what == "input" else set()
    return {v.name: v for v in getattr(proto.graph, what) if v.name not in defaults}


def check_labels(proto: onnx.ModelProto, data: CalibrationData, runtime: Runtime = CPU) -> None:
    """Check that the labels, if there are any, are classes of the model.

    Raises:
        DataError: some are not.
    """
    if data.labels is None:
        return
    _check_labels(data, declared_batch(proto, data.feeds) or 1, *judged(proto, runtime))


def _check_labels(data: CalibrationData, batch: int, session: Session, names: list[str]) -> None:
    if data.labels is None:
        return
    (output,) = session.run({name: array[:batch] for name, array in data.feeds.items()}, names[:1])
    classes = output.reshape(batch, -1).shape[1]
    low, high = data.labels.min(), data.labels.max()
    if low < 0 or high >= classes:
        raise DataError(
            f"labels of {data.source} go from {low} to {high} and the model has {classes} classes: "
            "give labels that count its classes from 0, or --no-labels"
        )


def verify(
    a: onnx.ModelProto,
    b: onnx.ModelProto,
    data: CalibrationData,
    *,
    runtime: Runtime = CPU,
    batches: tuple[int, ...] = BATCHES,
    known: Mapping[int, float] | None = None,
) -> Verification:
    """Compare model b with model a.

    Args:
        a, b: the models; b must have a's signature.
        data: images, with or without labels.
        runtime: how to run everything.
        batches: batch sizes at which to measure the latency; those that the data or the model allow.
        known: seconds of a run of model a, by batch size, as it was measured before: where it takes longer now,
            something disturbs the machine, and the latency is measured again.

    Raises:
        ModelError: the signatures differ, or a model does not run.
        DataError: the data do not fit.
    """
    same_signature(a, b)
    data = fit(a, data)
    fixed = declared_batch(a, data.feeds)
    wanted = at_once(data.feeds, AT_ONCE)
    size = fixed or batch_size(normalise(a), data.feeds, wanted, runtime)
    chunks = [feeds for feeds, _ in data.chunks(size)]
    if fixed and len(next(iter(chunks[-1].values()))) < fixed:
        chunks = chunks[:-1]
    pair = [judged(proto, runtime) for proto in (a, b)]
    sessions, names = [session for session, _ in pair], judged_in_both(*(own for _, own in pair))
    _check_labels(data, fixed or 1, sessions[0], names[0])
    everything = [_outputs(session, own, chunks) for session, own in zip(sessions, names, strict=True)]
    outputs = [side[0] for side in everything]  # the class scores
    count = sum(len(o) for o in outputs[0])
    labels = None if data.labels is None else data.labels[:count]
    flat = [np.concatenate([o.reshape(len(o), -1) for o in side]) for side in outputs]
    sizes = (size,) if size < wanted else tuple(n for n in batches if n <= len(data))
    feeds = {n: {k: v[:n] for k, v in data.feeds.items()} for n in sizes}
    rounds = [
        {n: interleaved(sessions, own, 1 / ROUNDS) for n, own in feeds.items()}
        for _ in range(ROUNDS)  # apart in time, as what else the machine does comes in spells
    ]
    measured = {n: Timings(np.concatenate([r[n].seconds for r in rounds])) for n in sizes}
    for n, seconds in (known or {}).items():
        if n in measured and measured[n].latency(0).value > DISTURBED * seconds:
            measured[n] = calm(sessions, feeds[n], seconds, PATIENCE)
    timings = [_timing(n, found) for n, found in measured.items()]
    shapes = input_shapes(a, data)
    return Verification(
        a=_side(a, shapes, outputs[0], labels, runtime),
        b=_side(b, shapes, outputs[1], labels, runtime),
        kl=divergence(*everything),
        agreement=float((flat[0].argmax(1) == flat[1].argmax(1)).mean()),
        difference=max(_difference(x, y) for x, y in zip(*everything, strict=True)),
        images=count,
        source=data.source,
        timings=timings,
        threads=runtime.threads_used,
    )


def _timing(batch: int, timings: Timings) -> Timing:
    a, b, share = timings.latency(0), timings.latency(1), timings.ratio(1)
    return Timing(batch=batch, a=a.value * 1e3, b=b.value * 1e3, ratio=share.value, uncertainty=share.uncertainty)


def _outputs(session: Session, names: list[str], chunks: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """What is judged, batch by batch each."""
    return [list(batches) for batches in zip(*(session.run(chunk, names) for chunk in chunks), strict=True)]


def _difference(x: list[np.ndarray], y: list[np.ndarray]) -> float:
    return max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(x, y, strict=True))


def judged_in_both(a: list[str], b: list[str]) -> tuple[list[str], list[str]]:
    """Of what two models are judged by: the class scores of each, and of the rest what both have.

    A pass may have found an output to be constant.
    """
    both = set(a) & set(b)
    ours, theirs = ([names[0], *(n for n in names[1:] if n in both)] for names in (a, b))
    return ours, theirs


def judged(proto: onnx.ModelProto, runtime: Runtime) -> tuple[Session, list[str]]:
    """A session, and the names of what the model is judged by: its class scores first, though they be no output."""
    names = Model(proto).judged
    if all(value.name != names[0] for value in proto.graph.output):
        exposed = onnx.ModelProto()
        exposed.CopyFrom(proto)
        exposed.graph.output.append(onnx.ValueInfoProto(name=names[0]))
        proto = exposed
    return Session(proto, runtime), names


def _side(
    proto: onnx.ModelProto,
    shapes: dict[str, tuple[int, ...]],
    outputs: list[np.ndarray],
    labels: np.ndarray | None,
    runtime: Runtime,
) -> Side:
    cost = total(
        observe(normalise(proto), shapes, runtime), shapes
    )  # computed pads and shapes would hide the size of what follows
    return Side(
        macs=cost.macs,
        parameters=cost.parameters,
        bytes=byte_size(proto),
        top1=None if labels is None else top1(outputs, labels),
    )
