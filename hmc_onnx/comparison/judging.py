"""The outputs by which a model is compared with another, and the one whose predictions are compared with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from calib.data.calibration import CalibrationData
from calib.measure.divergence import choices, class_logs, settled
from calib.runtime.batching import declared_batch
from calib.runtime.sessions import CPU, Runtime, Session
from passes.core.errors import DataError, SettingsError
from passes.graph.external import has_external
from passes.graph.model import Model
from passes.graph.outputs import NO_RESULT, Output, parse_kinds

__all__ = ["Judged", "check_decides", "check_labels", "labelled", "matched", "predictions"]

Feeds = Mapping[str, np.ndarray]


class Judged:
    """A model with a session that computes the outputs by which it is compared.

    Args:
        proto: the model.
        runtime: how to run it.
        outputs: "NAME=kind" for each output whose kind the user states.
        original: the model that this one was made from, whose outputs are compared; default: this one.

    Attributes:
        outputs: the outputs to compare; those that choose classes come first.
        session: the session; it also returns compared tensors that are not outputs of the model. For a model whose
            weights are in files it is not to be timed: it takes little memory, and is slower.

    Raises:
        ModelError: no output can be compared, or onnxruntime cannot load the model.
        SettingsError: `outputs` is malformed, or names an output that the model does not have.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        runtime: Runtime = CPU,
        outputs: Sequence[str] = (),
        original: Judged | None = None,
    ) -> None:
        model = Model(proto)
        model.kinds = parse_kinds(outputs)
        self.outputs: list[Output] = model.compared if original is None else matched(original.outputs, model)
        exposing = _exposing(proto, [o.tensor for o in self.outputs])
        self.session = Session(exposing, runtime, timed=not has_external(proto))

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of `outputs` for one batch; raises ModelError."""
        return self.session.run(feeds, [o.tensor for o in self.outputs])

    def batches(self, chunks: Sequence[Feeds]) -> list[list[np.ndarray]]:
        """For each of `outputs`, its values batch by batch; raises ModelError."""
        return [list(batches) for batches in zip(*(self.run(chunk) for chunk in chunks), strict=True)]


def matched(original: Sequence[Output], model: Model) -> list[Output]:
    """The outputs of a model that match the compared outputs of its original.

    Outputs that compression has made constant are left out. The kinds are those of the original, because they may be
    guessed differently for a model from which layers were removed.
    """
    own = {o.name: o for o in model.outputs}
    return [
        replace(o, tensor=own[o.name].tensor if o.tensor != o.name else o.name)
        for o in original
        if o.name in own and own[o.name].why != NO_RESULT
    ]


def _exposing(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The model with some of its tensors as additional outputs."""
    hidden = set(tensors) - {value.name for value in proto.graph.output}
    if not hidden:
        return proto
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(hidden))
    return exposed


def predictions(output: Output, batches: Sequence[np.ndarray], images: Sequence[int]) -> np.ndarray:
    """The predicted class of each image, int (N,), by an output that `labelled` accepts."""
    if output.kind == "probability" and _classes(output, batches[0], images[0]) > 2:
        logs = [class_logs(output, batch, n)[..., 1] for batch, n in zip(batches, images, strict=True)]
        return np.concatenate([batch.argmax(1) for batch in logs])
    return choices(output, batches, images)[:, 0]


def labelled(
    outputs: Sequence[Output], batch: Sequence[np.ndarray], images: int, labels: np.ndarray, source: str
) -> int | None:
    """Find the output whose predictions are compared with the labels.

    It is the first output with exactly as many classes as the largest label needs, else the first one with more.

    Args:
        outputs: the outputs of the model.
        batch: the value of each output for one batch.
        images: number of images of that batch.
        labels: the labels of all images, int (N,).
        source: where the labels come from, for the message.

    Returns:
        The output's index, or None if no output chooses one class per image.

    Raises:
        DataError: some outputs choose a class per image, but none has enough classes for the labels.
    """
    classes = {i: n for i, o in enumerate(outputs) if (n := _classes(o, batch[i], images))}
    low, high = int(labels.min()), int(labels.max())
    fitting = [i for i, n in classes.items() if low >= 0 and high < n]
    if classes and not fitting:
        raise DataError(
            f"labels of {source} go from {low} to {high} and the model has {next(iter(classes.values()))} classes: "
            "give labels that count its classes from 0, or leave them out (`labels=None`)"
        )
    return next((i for i in fitting if classes[i] == high + 1), next(iter(fitting), None))


def _classes(output: Output, batch: np.ndarray, images: int) -> int:
    """Number of classes of an output that chooses one class per image; 0 for any other output."""
    if not output.classes or not batch.size or batch.size % images:
        return 0
    _, places, classes = class_logs(output, batch, images).shape
    if output.kind == "probability":
        return max(places, 2)
    return classes if places == 1 else 0


def check_labels(
    proto: onnx.ModelProto, data: CalibrationData, runtime: Runtime = CPU, outputs: Sequence[str] = ()
) -> None:
    """Check that the labels, if there are any, are classes of the model.

    Raises:
        DataError: a label is no class of the model.
    """
    if data.labels is None:
        return
    judged, batch = Judged(proto, runtime, outputs), declared_batch(proto, data.feeds) or 1
    answer = judged.run({name: array[:batch] for name, array in data.feeds.items()})
    found = settled(judged.outputs, [[a] for a in answer], [batch])
    labelled(found, answer, batch, data.labels, data.source)


def check_decides(proto: onnx.ModelProto, outputs: Sequence[str] = ()) -> None:
    """Check that a model chooses classes, because a bound on the loss of accuracy needs them.

    Raises:
        SettingsError: the model's first output does not choose classes.
    """
    model = Model(proto)
    model.kinds = parse_kinds(outputs)
    first = model.compared[0]
    if not first.classes:
        raise SettingsError(
            f"`max_drop` bounds how many images get another class, and the model chooses none (its output "
            f"'{first.name}' is {first.what}): give a `target`, or say `judge={first.name}=scores`"
        )
