"""Compares two models: signature, cost, fidelity, accuracy and latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx

from calib.data.calibration import CalibrationData
from calib.measure.divergence import choices, divergence, divergences, images_first, settled
from calib.measure.latency import DISTURBED, PATIENCE, Timings, calm, interleaved
from calib.runtime.batching import at_once, batch_size, declared_batch, input_shapes, serving_feeds, whole_batches
from calib.runtime.observing import observe
from calib.runtime.sessions import CPU, Runtime, Session
from hmc_onnx.analysis.model_inputs import fit
from hmc_onnx.comparison.changes import find_changes
from hmc_onnx.comparison.intervals import of_change, of_mean, of_share
from hmc_onnx.comparison.judging import Judged, check_labels, labelled, predictions
from hmc_onnx.records.comparison import (
    BatchComparison,
    Intervals,
    OutputComparison,
    Side,
    Timing,
    Unchanged,
    Verification,
)
from passes.core.errors import ModelError
from passes.graph.cost import total
from passes.graph.model import Model
from passes.graph.outputs import Output, parse_kinds
from passes.graph.protos import byte_size
from passes.graph.signature import same_signature
from passes.normal_form.normalise import normalise

__all__ = ["BATCHES", "Network", "check_labels", "measured", "verify"]


# Batch size for a model that leaves it open.
AT_ONCE = 128
# Number of rounds in which latency is measured; each round measures every batch size.
ROUNDS = 3
# Batch sizes at which latency is measured.
BATCHES = (1, 8, 64)
# Batch sizes at which outputs are compared, in addition to the size at which all images are run.
OTHER_SIZES = (1, 3)


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
    known: Mapping[int, float] | None = None,
) -> Verification:
    """Compare model b with model a.

    Args:
        a, b: the models; b must have a's signature.
        data: images, with or without labels.
        runtime: how to run the models.
        batches: batch sizes at which to measure the latency; those above the number of images are left out, and a model
            with a fixed batch size is measured at that size only.
        known: earlier measurements of model a, seconds per run by batch size. If it takes longer now, other load
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
    images = [len(next(iter(chunk.values()))) for chunk in chunks]
    first = Judged(a.proto, runtime, a.outputs)
    second = Judged(b.proto, runtime, a.outputs, first)
    both = {o.name for o in second.outputs}
    ours = first.batches(chunks)
    pairs = [(o, batch) for o, batch in zip(first.outputs, ours, strict=True) if o.name in both]
    compared, reference = settled([o for o, _ in pairs], [x for _, x in pairs], images), [x for _, x in pairs]
    changed = [_as_the_original(second, chunk, n) for chunk, n in zip(chunks, images, strict=True)]
    answers = [list(own) for own in zip(*changed, strict=True)]
    against = [
        measured(o, x, y, images) for o, x, y in zip(compared, reference, answers, strict=True) if o.kind != "other"
    ]
    if not against:
        raise ModelError(
            f"the models have no output that can be compared ({', '.join(o.what for o in compared)}): "
            "export one of a fixed size, too"
        )
    count, labels, at = sum(images), None, None
    if data.labels is not None:
        labels = data.labels[:count]
        at = labelled(compared, [x[0] for x in reference], images[0], data.labels, data.source)
    right = [
        None if labels is None or at is None else predictions(compared[at], side[at], images) == labels
        for side in (reference, answers)
    ]
    sizes = (size,) if fixed or size < wanted else tuple(n for n in batches if n <= len(data))
    third = None if a.unchanged is None else Judged(a.unchanged[1], runtime, a.outputs, first)
    sessions = [first.session, second.session, *([] if third is None else [third.session])]
    timings = _timed(sessions, {n: {k: v[:n] for k, v in data.feeds.items()} for n in sizes}, known or {})
    shapes = input_shapes(a.proto, data)
    sides = [
        network.side(shapes, None if known is None else float(known.mean()), runtime)
        for network, known in zip((a, b), right, strict=True)
    ]
    main = compared[at] if at is not None else next(o for o in compared if o.kind != "other")
    own, where = next(report for report in against if report.name == main.name), compared.index(main)
    unchanged = None
    if third is not None and a.unchanged is not None:
        precision, proto = a.unchanged
        original = reference[where]
        theirs = next(x for o, x in zip(third.outputs, third.batches(chunks), strict=True) if o.name == main.name)
        unchanged = Unchanged(
            precision=precision,
            bytes=byte_size(proto),
            top1=None if labels is None or at is None else _right(main, theirs, images, labels),
            agreement=measured(main, original, theirs, images).agreement,
            timings=[_timing(n, found, 2) for n, found in timings.items()],
        )
    nats = divergences(reference, answers, judged=compared, images=images)
    return Verification(
        a=sides[0],
        b=sides[1],
        kl=max(float(nats.mean()), 0.0),
        intervals=_intervals(nats, main, reference[where], answers[where], images, right),
        agreement=own.agreement,
        cosine=next((report.cosine for report in against if report.cosine is not None), None),
        error=next(
            (report.error for report in against if report.kind != "embedding" and report.error is not None), None
        ),
        difference=max(
            _difference(x, y) for o, x, y in zip(compared, reference, answers, strict=True) if o.kind != "other"
        ),
        images=count,
        source=data.source,
        timings=[_timing(n, found) for n, found in timings.items()],
        threads=runtime.threads_used,
        outputs=[*against, *(_left_out(o) for o in _not_compared(a, against, compared))],
        batches=[] if fixed else _other_sizes(first, second, compared, reference, data, size),
        unchanged=unchanged,
        changes=find_changes(main, reference[where], answers[where], images, data, None if at is None else labels),
    )


def _intervals(
    nats: np.ndarray,
    main: Output,
    reference: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    images: Sequence[int],
    right: Sequence[np.ndarray | None],
) -> Intervals:
    """What the images tell of others: of the divergence, of the main output's classes, and of accuracy."""
    before, after = right
    same = choices(main, reference, images) == choices(main, answers, images) if main.classes else None
    return Intervals(
        kl=of_mean(nats),
        agreement=None if same is None else of_share(same.mean(1)),
        top1=None if after is None else of_share(after),
        change=None if before is None or after is None else of_change(before, after),
    )


def _as_the_original(compressed: Judged, feeds: Mapping[str, np.ndarray], images: int) -> list[np.ndarray]:
    """The compressed model's outputs on feeds on which the original has run; raises ModelError if it does not run."""
    try:
        return compressed.run(feeds)
    except ModelError as e:
        raise ModelError(
            f"the compressed model does not run on {images} images at once, as the original does ({e}): "
            "keep the original, and report this"
        ) from e


def _other_sizes(
    first: Judged,
    second: Judged,
    compared: Sequence[Output],
    reference: Sequence[Sequence[np.ndarray]],
    data: CalibrationData,
    size: int,
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
        answers = _as_the_original(second, feeds, n)
        try:
            nats = divergences([[x] for x in own], [[y] for y in answers], reference, 1.0, compared, [n])
        except (ValueError, IndexError):  # the outputs have other axes than at `size`
            raise ModelError(
                f"the outputs' shapes at {n} images at once do not follow from those at {size}: "
                "export the model with a batch size that is open throughout"
            ) from None
        found.append(BatchComparison(batch=n, kl=max(float(nats.mean()), 0.0)))
    return found


def measured(
    output: Output, reference: Sequence[np.ndarray], answers: Sequence[np.ndarray], images: Sequence[int]
) -> OutputComparison:
    """Compare one output of two models: its divergence in nats, and the measures of its kind.

    These are the agreement for an output that chooses classes; the relative root-mean-square error for any other; and
    also the cosine for an embedding.

    Args:
        output: description of the output.
        reference, answers: its values in the original and in the other model, batch by batch.
        images: number of images of each batch.
    """
    nats = divergence([reference], [answers], [output], images)
    report = OutputComparison(name=output.name, kind=output.kind, what=output.what, judged_by=output.judged_by, kl=nats)
    if output.classes:
        same = choices(output, reference, images) == choices(output, answers, images)
        return report.model_copy(update={"agreement": float(same.mean())})
    update: dict[str, float] = {"error": math.sqrt(2 * nats)}
    if output.kind == "embedding":
        update["cosine"] = _cosine(output, reference, answers, images)
    return report.model_copy(update=update)


def _cosine(
    output: Output, reference: Sequence[np.ndarray], answers: Sequence[np.ndarray], images: Sequence[int]
) -> float:
    """Mean over images of the cosine of the angle between two embeddings."""
    found = []
    for a, b, n in zip(reference, answers, images, strict=True):
        x, y = (images_first(output, side, n).reshape(n, -1).astype(np.float64) for side in (a, b))
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        found.append((x * y).sum(1) / np.maximum(lengths, np.finfo(float).tiny))
    return float(np.concatenate(found).mean())


def _right(output: Output, batches: Sequence[np.ndarray], images: Sequence[int], labels: np.ndarray) -> float:
    return float((predictions(output, batches, images) == labels).mean())


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
    sessions: list[Session], feeds: dict[int, dict[str, np.ndarray]], known: Mapping[int, float]
) -> dict[int, Timings]:
    """Times of runs, by batch size; measured in rounds spread over time, because other load comes in spells."""
    rounds = [{n: interleaved(sessions, own, 1 / ROUNDS) for n, own in feeds.items()} for _ in range(ROUNDS)]
    measured = {n: Timings(np.concatenate([r[n].seconds for r in rounds])) for n in feeds}
    for n, seconds in known.items():
        if n in measured and measured[n].latency(0).value > DISTURBED * seconds:
            measured[n] = calm(sessions, feeds[n], seconds, PATIENCE)
    return measured


def _timing(batch: int, timings: Timings, model: int = 1) -> Timing:
    a, b, share = timings.latency(0), timings.latency(model), timings.ratio(model)
    return Timing(batch=batch, a=a.value * 1e3, b=b.value * 1e3, ratio=share.value, uncertainty=share.uncertainty)


def _difference(x: list[np.ndarray], y: list[np.ndarray]) -> float:
    return max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(x, y, strict=True))
