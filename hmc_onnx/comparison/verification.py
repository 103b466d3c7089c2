"""Compares two models: signature, cost, fidelity, accuracy and latency."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx

from calib.data.calibration import CalibrationData
from calib.measure.divergence import divergences
from calib.measure.latency import DISTURBED, PATIENCE, Timings, calm, interleaved, surer
from calib.runtime.batching import at_once, batch_size, declared_batch, input_shapes, serving_feeds, whole_batches
from calib.runtime.observing import observe
from calib.runtime.sessions import CPU, Runtime, Session
from hmc_onnx.analysis.model_inputs import fit
from hmc_onnx.comparison.answers import Answers, as_the_original
from hmc_onnx.comparison.doubts import with_doubts
from hmc_onnx.comparison.judging import Judged, check_labels
from hmc_onnx.execution.context import Context
from hmc_onnx.records.comparison import (
    BatchComparison,
    OutputComparison,
    Side,
    Timing,
    Unchanged,
    Verification,
)
from passes.core.errors import ModelError
from passes.graph.cost import total
from passes.graph.external import has_external
from passes.graph.model import Model, digest
from passes.graph.outputs import Output, parse_kinds
from passes.graph.protos import byte_size
from passes.graph.signature import same_signature
from passes.normal_form.normalise import normalise

__all__ = ["BATCHES", "Network", "Serving", "check_labels", "verify"]


# Batch size for a model that leaves it open.
AT_ONCE = 128
# Number of rounds in which latency is measured; each round measures every batch size.
ROUNDS = 3
# Batch sizes at which latency is measured.
BATCHES = (1, 8, 64)
# Batch sizes at which outputs are compared, in addition to the size at which all images are run.
OTHER_SIZES = (1, 3)


class Serving(NamedTuple):
    """How models will be served.

    Attributes:
        batch: images in a run.
        seconds: of a run of the original, measured before; None where that was not done on this machine.
    """

    batch: int
    seconds: float | None = None


class Network:
    """A model to compare, with its normal form, which is computed when it is first used.

    Args:
        proto: the model.
        normal: its normal form, if it is known.
        outputs: "NAME=kind" for each output whose kind would be guessed wrongly.
        unchanged: name of another precision, and the model in that precision, to be measured as well.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        normal: Model | None = None,
        outputs: Sequence[str] = (),
        unchanged: tuple[str, onnx.ModelProto] | None = None,
    ) -> None:
        self.proto, self.outputs, self.unchanged = proto, outputs, unchanged
        if normal is not None:
            self.normal = normal

    @classmethod
    def of(cls, context: Context) -> Network:
        """The original of a run; if it is served in another precision, with what a quantiser alone makes of it."""
        settings = context.settings
        alone = None if settings.precision == "fp32" else (settings.precision, context.served_alone)
        return cls(context.served, context.normal, settings.judge, alone)

    @cached_property
    def normal(self) -> Model:
        """The normal form."""
        return normalise(self.proto)

    def side(self, shapes: dict[str, tuple[int, ...]], top1: float | None, runtime: Runtime) -> Side:
        """MACs, parameters and size of the model; it is run to observe shapes that inference cannot find."""
        cost = total(observe(self.normal, shapes, runtime), shapes)
        return Side(macs=cost.macs, parameters=cost.parameters, bytes=byte_size(self.proto), top1=top1)


def verify(
    a: Network,
    b: Network,
    data: CalibrationData,
    runtime: Runtime = CPU,
    batches: tuple[int, ...] = BATCHES,
    serving: Serving | None = None,
) -> Verification:
    """Compare model b with model a, and warn of what speaks against serving b (`HmcWarning`).

    Args:
        a, b: the models; b must have a's signature.
        data: images, with or without labels.
        runtime: how to run the models.
        batches: batch sizes at which to measure the latency; those above the number of images are left out, and a model
            with a fixed batch size is measured at that size only.
        serving: how b will be served, where that is known. If a takes longer now than it took before, other load
            disturbs the machine, and the latency is measured again.

    Raises:
        ModelError: the signatures differ, a model does not run, or b does not run at a batch size at which a does.
        DataError: the data do not fit the models.
        SettingsError: `a.outputs` is malformed.
    """
    same_signature(a.proto, b.proto)
    data = fit(a.proto, data)
    fixed = declared_batch(a.proto, data.feeds)
    wanted = at_once(data.feeds, AT_ONCE)
    size = fixed or batch_size(a.normal, data.feeds, wanted, runtime)
    chunks = whole_batches(data, size, fixed)
    first = Judged(a.proto, runtime, a.outputs)
    second = Judged(b.proto, runtime, a.outputs, first)
    found = Answers.of(first, second, chunks, data)
    sizes = (size,) if fixed or size < wanted else tuple(n for n in batches if n <= len(data))
    third = None if a.unchanged is None else Judged(a.unchanged[1], runtime, a.outputs, first)
    alone = None if third is None else found.of_another(third, chunks)
    others = [] if fixed else _other_sizes(first, second, found, data, size)
    protos = [a.proto, b.proto, *([] if a.unchanged is None else [a.unchanged[1]])]
    feeds = {n: {k: v[:n] for k, v in data.feeds.items()} for n in sizes}
    if any(map(has_external, protos)):
        del first, second, third  # with their sessions
        timings = _timed_one_by_one(protos, runtime, feeds)
    else:
        sessions = [judged.session for judged in (first, second, third) if judged is not None]
        timings = _timed(sessions, feeds, serving)
    shapes = input_shapes(a.proto, data)
    sides = [network.side(shapes, top1, runtime) for network, top1 in zip((a, b), found.top1, strict=True)]
    unchanged = None
    if alone is not None and a.unchanged is not None:
        precision, proto = a.unchanged
        unchanged = Unchanged(
            precision=precision,
            bytes=byte_size(proto),
            top1=alone[1],
            agreement=alone[0],
            timings=[_timing(n, times, 2) for n, times in timings.items()],
        )
    comparison = Verification(
        original=digest(a.proto),
        a=sides[0],
        b=sides[1],
        kl=max(float(found.nats.mean()), 0.0),
        intervals=found.intervals(),
        agreement=found.main_report.agreement,
        cosine=found.first("cosine"),
        error=found.first("error"),
        difference=found.difference,
        images=sum(found.images),
        source=data.source,
        timings=[_timing(n, times) for n, times in timings.items()],
        threads=runtime.threads_used,
        outputs=[*found.reports, *(_left_out(o) for o in _not_compared(a, found.reports, found.outputs))],
        batches=others,
        unchanged=unchanged,
        changes=found.changes(data),
    )
    return with_doubts(comparison, runtime, *(serving or ()))


def _other_sizes(
    first: Judged, second: Judged, compared: Answers, data: CalibrationData, size: int
) -> list[BatchComparison]:
    """The divergence at each of `OTHER_SIZES`, except `size`, at which the original runs."""
    found = []
    names = {o.name for o in second.outputs}
    for n in OTHER_SIZES:
        feeds = serving_feeds(data, n)
        try:
            own = [y for o, y in zip(first.outputs, first.run(feeds), strict=True) if o.name in names]
        except ModelError:
            continue
        if n == size:
            continue
        answers = as_the_original(second, feeds, n)
        try:
            nats = divergences(
                [[x] for x in own], [[y] for y in answers], compared.reference, 1.0, compared.outputs, [n]
            )
        except (ValueError, IndexError):  # the outputs have other axes than at `size`
            raise ModelError(
                f"the outputs' shapes at {n} images at once do not follow from those at {size}: "
                "export the model with a batch size that is open throughout"
            ) from None
        same = float(compared.nats[:n].mean())
        found.append(BatchComparison(batch=n, kl=max(float(nats.mean()), 0.0), same=max(same, 0.0)))
    return found


def _not_compared(network: Network, against: Sequence[OutputComparison], compared: Sequence[Output]) -> list[Output]:
    """The outputs of a model that were not compared."""
    model = Model(network.proto)
    model.kinds = parse_kinds(network.outputs)
    shown = {o.name: o for o in compared}
    tensors = {o.tensor for o in compared}
    named = {report.name for report in against}
    left = [shown.get(o.name, o) for o in model.outputs if o.name not in named]
    return [o for o in left if o.kind == "other" or o.tensor not in tensors]


def _left_out(output: Output) -> OutputComparison:
    return OutputComparison(
        name=output.name,
        kind="other",
        what=output.why or "a constant in the compressed model",
        judged_by="not compared",
    )


def _timed(
    sessions: list[Session], feeds: dict[int, dict[str, np.ndarray]], serving: Serving | None
) -> dict[int, Timings]:
    """Times of runs, by batch size; measured in rounds spread over time, because other load comes in spells.

    What is disturbed is timed again, for a while.
    """
    rounds = [{n: interleaved(sessions, own, 1 / ROUNDS) for n, own in feeds.items()} for _ in range(ROUNDS)]
    measured = {n: Timings(np.concatenate([r[n].seconds for r in rounds])) for n in feeds}
    batch, before = serving or (0, None)
    if before is not None and batch in measured and measured[batch].latency(0).value > DISTURBED * before:
        measured[batch] = calm(sessions, feeds[batch], before, PATIENCE)
    end = time.perf_counter() + PATIENCE
    return {n: surer(measured[n], sessions, own, end) for n, own in feeds.items()}


def _timed_one_by_one(
    protos: Sequence[onnx.ModelProto], runtime: Runtime, feeds: dict[int, dict[str, np.ndarray]]
) -> dict[int, Timings]:
    """Like `_timed`, with one model in memory at a time, for large ones.

    onnxruntime holds twice the weights of a network of Convs while it makes a session, as it changes their layout.
    """
    rounds: dict[int, list[np.ndarray]] = {n: [] for n in feeds}
    for _ in range(ROUNDS):
        turns: dict[int, list[np.ndarray]] = {n: [] for n in feeds}
        for proto in protos:
            session = Session(proto, runtime)
            for n, own in feeds.items():
                turns[n].append(interleaved([session], own, 1 / ROUNDS).seconds[:, 0])
            del session
        for n, seconds in turns.items():
            count = min(map(len, seconds))
            rounds[n].append(np.stack([own[:count] for own in seconds], axis=1))
    return {n: Timings(np.concatenate(own)) for n, own in rounds.items()}


def _timing(batch: int, timings: Timings, model: int = 1) -> Timing:
    a, b, share = timings.latency(0), timings.latency(model), timings.ratio(model)
    return Timing(batch=batch, a=a.value * 1e3, b=b.value * 1e3, ratio=share.value, uncertainty=share.uncertainty)
