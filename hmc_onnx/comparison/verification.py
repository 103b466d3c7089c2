"""Two models compared: signature, cost, fidelity, accuracy and latency."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx

from calib.data.calibration import CalibrationData
from calib.measure.divergence import divergence, top1
from calib.measure.latency import DISTURBED, PATIENCE, Timings, calm, interleaved
from calib.runtime.batching import at_once, batch_size, declared_batch, input_shapes
from calib.runtime.observing import observe
from calib.runtime.sessions import CPU, Runtime, Session
from hmc_onnx.analysis.model_inputs import fit
from hmc_onnx.records.comparison import Side, Timing, Verification
from passes.core.errors import DataError
from passes.graph.cost import total
from passes.graph.model import Model
from passes.graph.protos import byte_size
from passes.graph.signature import same_signature
from passes.normal_form.normalise import normalise

__all__ = ["BATCHES", "Network", "check_labels", "judged", "judged_in_both", "verify"]


# Images run at once where the model leaves the number open.
AT_ONCE = 128
# Times that each batch size is come back to.
ROUNDS = 3
# Batch sizes at which latency is measured.
BATCHES = (1, 8, 64)


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
            "give labels that count its classes from 0, or leave them out (`labels=None`)"
        )


class Network:
    """A model to compare: as it is served, and its normal form, which is made when it is asked for.

    Args:
        proto: the model.
        normal: its normal form, where that is known.
    """

    def __init__(self, proto: onnx.ModelProto, normal: Model | None = None) -> None:
        self.proto = proto
        if normal is not None:
            self.normal = normal

    @cached_property
    def normal(self) -> Model:
        """The normal form."""
        return normalise(self.proto)

    def side(self, shapes: dict[str, tuple[int, ...]], top1: float | None, runtime: Runtime) -> Side:
        """What is counted of it: shapes that the graph computes would hide the size of what follows, so it is run."""
        cost = total(observe(self.normal, shapes, runtime), shapes)
        return Side(macs=cost.macs, parameters=cost.parameters, bytes=byte_size(self.proto), top1=top1)


def verify(
    a: Network,
    b: Network,
    data: CalibrationData,
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
    same_signature(a.proto, b.proto)
    data = fit(a.proto, data)
    fixed = declared_batch(a.proto, data.feeds)
    wanted = at_once(data.feeds, AT_ONCE)
    size = fixed or batch_size(a.normal, data.feeds, wanted, runtime)
    chunks = [feeds for feeds, _ in data.chunks(size)]
    if fixed and len(next(iter(chunks[-1].values()))) < fixed:
        chunks = chunks[:-1]
    pair = [judged(network.proto, runtime) for network in (a, b)]
    sessions, names = [session for session, _ in pair], judged_in_both(*(own for _, own in pair))
    _check_labels(data, fixed or 1, sessions[0], names[0])
    everything = [_outputs(session, own, chunks) for session, own in zip(sessions, names, strict=True)]
    outputs = [side[0] for side in everything]  # the class scores
    count = sum(len(o) for o in outputs[0])
    labels = None if data.labels is None else data.labels[:count]
    flat = [np.concatenate([o.reshape(len(o), -1) for o in side]) for side in outputs]
    sizes = (size,) if size < wanted else tuple(n for n in batches if n <= len(data))
    timings = _timed(sessions, {n: {k: v[:n] for k, v in data.feeds.items()} for n in sizes}, known or {})
    shapes = input_shapes(a.proto, data)
    sides = [
        network.side(shapes, None if labels is None else top1(scores, labels), runtime)
        for network, scores in zip((a, b), outputs, strict=True)
    ]
    return Verification(
        a=sides[0],
        b=sides[1],
        kl=divergence(*everything),
        agreement=float((flat[0].argmax(1) == flat[1].argmax(1)).mean()),
        difference=max(_difference(x, y) for x, y in zip(*everything, strict=True)),
        images=count,
        source=data.source,
        timings=[_timing(n, found) for n, found in timings.items()],
        threads=runtime.threads_used,
    )


def _timed(
    sessions: list[Session], feeds: dict[int, dict[str, np.ndarray]], known: Mapping[int, float]
) -> dict[int, Timings]:
    """Times of runs by batch size: in rounds apart in time, as what else the machine does comes in spells."""
    rounds = [{n: interleaved(sessions, own, 1 / ROUNDS) for n, own in feeds.items()} for _ in range(ROUNDS)]
    measured = {n: Timings(np.concatenate([r[n].seconds for r in rounds])) for n in feeds}
    for n, seconds in known.items():
        if n in measured and measured[n].latency(0).value > DISTURBED * seconds:
            measured[n] = calm(sessions, feeds[n], seconds, PATIENCE)
    return measured


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
