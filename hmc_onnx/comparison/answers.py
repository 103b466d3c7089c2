"""What two models answer to the same images, and how far the answers are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calib.data.calibration import CalibrationData, length
from calib.measure.divergence import (
    check_comparable,
    choices,
    divergence,
    divergences,
    images_first,
    largest_difference,
    of_no_answer,
    settled,
)
from hmc_onnx.comparison.changes import find_changes
from hmc_onnx.comparison.intervals import of_change, of_mean, of_share
from hmc_onnx.comparison.judging import Judged, labelled, predictions
from hmc_onnx.records.changes import Changes
from hmc_onnx.records.comparison import Intervals, OutputComparison
from passes.core.errors import ModelError
from passes.graph.outputs import Output

__all__ = ["Answers", "as_the_original", "measured"]

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Answers:
    """The answers of an original and of a model that was made from it.

    Attributes:
        outputs: the outputs that both have.
        reference, answers: the values of each output, batch by batch, of the original and of the other.
        images: number of images of each batch.
        labels: class of each image, (N,); None where no output is held against labels.
        at: index of the output that labels are held against.
    """

    outputs: list[Output]
    reference: list[list[np.ndarray]]
    answers: list[list[np.ndarray]]
    images: list[int]
    labels: np.ndarray | None
    at: int | None

    @classmethod
    def of(
        cls,
        first: Judged,
        second: Judged,
        chunks: Sequence[Feeds],
        data: CalibrationData,
        known: Sequence[list[np.ndarray]] | None = None,
    ) -> Answers:
        """Run two models.

        Args:
            first, second: the original, and the model that was made from it.
            chunks: feeds, batch by batch.
            data: the images that these are of, with or without labels.
            known: what the original's `batches` gives for them, where that is known.

        Raises:
            ModelError: a model does not run, or there is no output that can be compared.
            DataError: the labels fit no output.
        """
        images = [length(chunk) for chunk in chunks]
        both = {o.name for o in second.outputs}
        values = first.batches(chunks) if known is None else known
        pairs = [(o, x) for o, x in zip(first.outputs, values, strict=True) if o.name in both]
        reference = [x for _, x in pairs]
        outputs = settled([o for o, _ in pairs], reference, images)
        changed = [as_the_original(second, chunk, n) for chunk, n in zip(chunks, images, strict=True)]
        check_comparable(outputs)
        at = None
        if data.labels is not None:
            at = labelled(outputs, [x[0] for x in reference], images[0], data.labels, data.source)
        labels = None if data.labels is None or at is None else data.labels[: sum(images)]
        return cls(outputs, reference, [list(own) for own in zip(*changed, strict=True)], images, labels, at)

    @cached_property
    def place(self) -> int:
        """Index of the main output: the one that labels are held against, else the first that can be compared."""
        return self.at if self.at is not None else next(i for i, o in enumerate(self.outputs) if o.kind != "other")

    @cached_property
    def reports(self) -> list[OutputComparison]:
        """Each output that can be compared."""
        each = zip(self.outputs, self.reference, self.answers, strict=True)
        return [measured(o, x, y, self.images) for o, x, y in each if o.kind != "other"]

    @property
    def main_report(self) -> OutputComparison:
        """The main output."""
        return next(report for report in self.reports if report.name == self.outputs[self.place].name)

    def first(self, measure: str) -> float | None:
        """The first output's value of a measure, "cosine" or "error"; an embedding has its cosine for an error."""
        found = (getattr(r, measure) for r in self.reports if measure == "cosine" or r.kind != "embedding")
        return next((value for value in found if value is not None), None)

    @cached_property
    def nats(self) -> np.ndarray:
        """The divergence of each image, summed over the outputs, (N,)."""
        return divergences(self.reference, self.answers, judged=self.outputs, images=self.images)

    @property
    def difference(self) -> float:
        """The largest absolute difference of an output."""
        each = zip(self.outputs, self.reference, self.answers, strict=True)
        return max(largest_difference(x, y) for o, x, y in each if o.kind != "other")

    @cached_property
    def right(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Whether each of the models gives an image its label, bool (N,); None where there are no labels."""
        if self.labels is None or self.at is None:
            return None
        output = self.outputs[self.at]
        before, after = (predictions(output, x[self.at], self.images) for x in (self.reference, self.answers))
        return before == self.labels, after == self.labels

    @property
    def top1(self) -> tuple[float | None, float | None]:
        """The accuracy of each model."""
        return (None, None) if self.right is None else (float(self.right[0].mean()), float(self.right[1].mean()))

    def intervals(self) -> Intervals:
        """What the images tell of others: of the divergence, of the main output's classes, and of accuracy."""
        main, i = self.outputs[self.place], self.place
        agreement = None
        if main.classes:
            same = choices(main, self.reference[i], self.images) == choices(main, self.answers[i], self.images)
            agreement = of_share(same.mean(1))
        return Intervals(
            kl=of_mean(self.nats, of_no_answer(self.outputs, self.reference, self.images)),
            agreement=agreement,
            top1=None if self.right is None else of_share(self.right[1]),
            change=None if self.right is None else of_change(*self.right),
        )

    def changes(self, data: CalibrationData) -> Changes:
        """The images that the main output is different for, and the accuracy of each class."""
        i = self.place
        return find_changes(self.outputs[i], self.reference[i], self.answers[i], self.images, data, self.labels)

    def of_another(self, other: Judged, chunks: Sequence[Feeds]) -> tuple[float | None, float | None]:
        """The agreement of another model with the original, by the main output, and its accuracy."""
        main = self.outputs[self.place]
        theirs = next(x for o, x in zip(other.outputs, other.batches(chunks), strict=True) if o.name == main.name)
        agreement = measured(main, self.reference[self.place], theirs, self.images).agreement
        if self.labels is None:
            return agreement, None
        return agreement, float((predictions(main, theirs, self.images) == self.labels).mean())


def as_the_original(compressed: Judged, feeds: Feeds, images: int) -> list[np.ndarray]:
    """The compressed model's outputs on feeds on which the original has run; raises ModelError if it does not run."""
    try:
        return compressed.run(feeds)
    except ModelError as e:
        raise ModelError(
            f"the compressed model does not run on {images} images at once, as the original does ({e}): "
            "keep the original, and report this"
        ) from e


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
