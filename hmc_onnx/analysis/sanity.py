"""Checks of the data before any work is done: preprocessing, labels, and class folders.

Each check gives at most one `Finding`, whose sentence says what is likely wrong and what to set. A finding is fatal
only if a result would be meaningless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from scipy.special import bdtr

from calib.data.calibration import CalibrationData, Origin
from calib.measure.divergence import log_probabilities
from hmc_onnx.analysis.input_arithmetic import input_arithmetic
from passes.core.records import Frozen

__all__ = ["Finding", "findings", "values_apart"]

LEAST = 16  # accuracy, predictions and entropy are checked on at least this many images
LOOKED_AT = 256  # upper bound on the samples whose values are checked
# Values above this suggest pixels from 0 to 255 that were not scaled as the mean and standard deviation require.
LARGE = 50.0
# An image stands apart if its largest magnitude is that many times the median of all images' largest.
APART = 100.0
# The square of this is about the largest float32.
MOST_SQUARED = 1e19
# Images hardly differ if the standard deviation of their values is below this share of the largest magnitude.
FLAT = 0.02
# Predictions are close to a guess if their entropy is above this share of the entropy of equal probabilities.
UNSURE = 0.95
# No trained network has a mean entropy (in nats) below this, not even on its training images.
TOO_SURE = 1e-6
# A renumbering of the classes is the likely fault if it makes this share of the images right.
EXPLAINED = 0.6
CERTAIN = 0.999  # confidence that a network with more right answers than the bound does not guess


class Finding(Frozen):
    """Something that is likely wrong with the data.

    Attributes:
        code: identifier of what was found.
        sentence: what is likely wrong, and what to do.
        fatal: whether a result would be meaningless.
    """

    code: str
    sentence: str
    fatal: bool = False


@dataclass(frozen=True)
class _Evidence:
    proto: onnx.ModelProto
    data: CalibrationData
    scores: np.ndarray | None
    """Class scores of the first images, (n, K)."""
    whole: CalibrationData
    """All data, where `data` are a draw of them."""

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the images that have scores; without scores, all labels."""
        labels = self.data.labels
        return labels if labels is None or self.scores is None else labels[: len(self.scores)]

    @property
    def origin(self) -> Origin | None:
        return self.data.origin

    @property
    def where(self) -> str:
        return self.data.source

    def named(self, number: int) -> str:
        """A class in words, with the name of its folder if it has one."""
        name = self.origin.classes.get(number) if self.origin else None
        return f"class {number}" if name is None else f"class {number} ('{name}')"

    def images(self) -> dict[str, np.ndarray]:
        """The first samples of each input that has four axes and a numeric type, float64 (n, ...), by name."""
        wanted = {name: a[:LOOKED_AT] for name, a in self.data.feeds.items() if a.ndim == 4}
        return {name: a.astype(np.float64) for name, a in wanted.items() if a.dtype.kind in "fiu"}


def findings(
    proto: onnx.ModelProto,
    data: CalibrationData,
    scores: np.ndarray | None = None,
    whole: CalibrationData | None = None,
) -> list[Finding]:
    """Run all checks, and list the findings, the fatal ones first.

    Args:
        proto: the original model.
        data: the data as they are fed to the model.
        scores: the model's logits or probabilities of K classes for the first n samples, (n, K). None if the model is
            no classifier or was not run; checks that need scores are left out then, and also if any score is not
            finite.
        whole: all data, where these are a draw of them.
    """
    if scores is not None and (scores.ndim != 2 or not len(scores) or not np.isfinite(scores).all()):
        scores = None
    evidence = _Evidence(proto, data, scores, whole or data)
    found = [finding for check in CHECKS if (finding := check(evidence)) is not None]
    return sorted(found, key=lambda finding: not finding.fatal)


def _skipped(e: _Evidence) -> Finding | None:
    """Report the unreadable image files that were left out as the user asked."""
    if e.origin is None or not e.origin.skipped:
        return None
    count = len(e.origin.skipped)
    return Finding(
        code="skipped",
        sentence=f"{count} image{'s' * (count > 1)} of '{e.origin.path}' could not be read and "
        f"{'were' if count > 1 else 'was'} left out, the first '{e.origin.skipped[0]}'",
    )


def _head(e: _Evidence) -> Finding | None:
    """Compare labels and class folders with the model's number of classes."""
    if e.scores is None or e.labels is None or e.scores.shape[1] < 2:
        return None
    width, low, high = e.scores.shape[1], int(e.data.labels.min()), int(e.data.labels.max())  # type: ignore[union-attr]
    if low < 0 or high >= width:
        shift = ": they seem to count from 1, so add -1 to `labels_offset`" if high == width and low >= 1 else ""
        return Finding(
            code="labels_out_of_range",
            fatal=True,
            sentence=f"the labels of {e.where} go from {low} to {high} and the model has {width} classes, 0 to "
            f"{width - 1}{shift or ': give a `label_map`, or leave the labels out'}",
        )
    folders = len(e.origin.classes) if e.origin and not e.origin.mapped else 0
    if folders == width - 1 and width > 2 and min(e.origin.classes) == 0:  # type: ignore[union-attr]
        return Finding(
            code="background_class",
            sentence=f"there are {folders} class folders and the model has {width} classes: if its class 0 is the "
            "background, set `labels_offset` to 1, and if a folder is missing, give a `label_map`",
        )
    if 0 < folders < width:
        return Finding(
            code="folders_missing",
            sentence=f"there are {folders} class folders, numbered in the order of their names, and the model has "
            f"{width} classes: a missing folder shifts the classes after it, so give a `label_map`",
        )
    return None


def _case(e: _Evidence) -> Finding | None:
    """Find class folders whose order depends on upper and lower case."""
    if e.origin is None or e.origin.mapped:
        return None
    names = [name for _, name in sorted(e.origin.classes.items())]
    if names == sorted(names, key=str.lower):
        return None
    first = next(a for a, b in zip(names, sorted(names, key=str.lower), strict=True) if a != b)
    return Finding(
        code="folder_case",
        sentence=f"the class folders are numbered in the order of their names, capitals first, which puts '{first}' "
        "elsewhere than an order that ignores case: if the model was trained with other numbers, give a `label_map`",
    )


def _one_label(e: _Evidence) -> Finding | None:
    """Find labels that are all equal."""
    labels = e.data.labels
    if labels is None or len(labels) < LEAST or labels.min() != labels.max():
        return None
    return Finding(
        code="one_label",
        sentence=f"the labels of {e.where} are all {e.named(int(labels[0]))}: "
        "give images of all the classes that the model knows",
    )


def _one_answer(e: _Evidence) -> Finding | None:
    """Find predictions that are all equal."""
    if e.scores is None or len(e.scores) < LEAST or e.scores.shape[1] < 2:
        return None
    answers = e.scores.argmax(1)
    if answers.min() != answers.max() or (e.labels is not None and (e.labels == answers).mean() > 0.5):
        return None
    return Finding(
        code="one_answer",
        sentence=f"the model answers {e.named(int(answers[0]))} to each of {len(answers)} images: unless they are all "
        "alike, they are not preprocessed as in training, so check `preset`, or `mean`, `std`, `scale` and `channels`",
    )


def _near_chance(e: _Evidence) -> Finding | None:
    """Find an accuracy that is no better than a guess, and its likely cause."""
    if e.scores is None or e.labels is None or len(e.labels) < LEAST or e.scores.shape[1] < 2:
        return None
    n, width = len(e.labels), e.scores.shape[1]
    answers, labels = e.scores.argmax(1), e.labels
    right = int((answers == labels).sum())
    if not _guessed(right, n, width) or labels.min() == labels.max():
        return None
    start = f"the model is right on {right} of {n} labelled images, no more than a guess"
    for offset in (1, -1):
        moved = int((answers == labels + offset).sum())
        if moved >= EXPLAINED * n and not _guessed(moved, n, width):
            return Finding(
                code="near_chance",
                sentence=f"{start}, and on {moved} if {offset:+d} is added to each label: add {offset} to "
                "`labels_offset`, which is 0 by default",
            )
    explained = _renumbered(answers, labels)
    classes = len(np.unique(labels))
    if explained >= EXPLAINED * n and n >= 4 * classes and not _guessed(explained, n, classes):
        return Finding(
            code="near_chance",
            sentence=f"{start}, though it tells the classes apart ({explained} images if they are numbered otherwise): "
            "the labels are numbered otherwise than the model's classes, so give a `label_map`",
        )
    return Finding(
        code="near_chance",
        sentence=f"{start}: check the preprocessing (`preset`, or `mean`, `std`, `scale`, `channels` and `layout`) and "
        "the labels (`labels_offset`, `label_map`)",
    )


def _guessed(right: int, n: int, width: int) -> bool:
    """Whether a network that guesses among `width` classes may have this many right answers (`CERTAIN`)."""
    return right == 0 or bool(bdtr(right - 1, n, 1 / width) < CERTAIN)


def _renumbered(answers: np.ndarray, labels: np.ndarray) -> int:
    """Number of images that are right if each label means the class predicted most often for it, using a class once."""
    used: set[int] = set()
    total = 0
    for label in np.unique(labels):
        classes, counts = np.unique(answers[labels == label], return_counts=True)
        best = int(classes[counts.argmax()])
        if best not in used:
            total += int(counts.max())
            used.add(best)
    return total


def _entropy(e: _Evidence) -> Finding | None:
    """Find predictions that are nearly uniform, or more confident than those of any trained network."""
    if e.scores is None or len(e.scores) < LEAST or e.scores.shape[1] < 2:
        return None
    logs = log_probabilities(e.scores)
    entropy = float(-(np.exp(logs) * logs).sum(1).mean())
    highest = float(np.log(e.scores.shape[1]))
    check = "check `preset`, or `mean`, `std` and `scale`"
    if entropy > UNSURE * highest:
        return Finding(
            code="entropy_high",
            sentence=f"the model's answers are close to equal probabilities of {e.scores.shape[1]} classes (entropy "
            f"{entropy:.2f} of at most {highest:.2f} nats): it is not trained, or the images are not preprocessed as "
            f"in training, so {check}",
        )
    if entropy < TOO_SURE:
        return Finding(
            code="entropy_low",
            sentence=f"the model is surer of its answers than trained networks are (entropy {entropy:.0e} nats): "
            f"the values that it is fed are likely too large, so {check}",
        )
    return None


def values_apart(data: CalibrationData) -> Finding | None:
    """Find images with values far larger than those of the others; fatal where float32 cannot hold their squares."""
    for name, values in data.feeds.items():
        if values.ndim != 4 or values.dtype.kind != "f":
            continue
        peaks = np.maximum(values.max((1, 2, 3)), -values.min((1, 2, 3))).astype(np.float64)
        usual, largest = float(np.median(peaks)), float(peaks.max())
        apart = np.flatnonzero(peaks > (APART * usual or MOST_SQUARED))
        if len(apart):
            first = apart[0] if data.origin is None else data.origin.places[apart[0]]
            return Finding(
                code="values_apart",
                fatal=largest > MOST_SQUARED,
                sentence=f"{len(apart)} of {len(values)} images of input '{name}', the first of them image {first}, "
                f"hold values up to {largest:.4g}, and half of the images none above {usual:.4g}: leave them out, or "
                "prepare them as in training",
            )
    return None


def _apart(e: _Evidence) -> Finding | None:
    return values_apart(e.whole)


def _range(e: _Evidence) -> Finding | None:
    """Find values that are too large, or vary too little, for normalised images."""
    how = e.origin.preprocess if e.origin and not e.origin.ready else None
    for name, images in e.images().items():
        if e.data.feeds[name].dtype.kind != "f":
            continue
        low, high = float(images.min()), float(images.max())
        largest = max(-low, high)
        fed = f"input '{name}' is fed values from {low:.4g} to {high:.4g}"
        flat = len(images) > 1 and largest > 1 and images.std() < FLAT * largest
        if flat and values_apart(e.whole) is None:
            return Finding(
                code="values_flat",
                sentence=f"{fed}, which hardly differ: mean and std are likely of pixels from 0 to 255 while pixels "
                "were divided by 255, so set `scale` to 1",
            )
        if largest <= LARGE:
            continue
        if how is not None and how.scale < 2 and how.normalises and max(how.mean) <= 1 and min(how.std) < 1:
            return Finding(
                code="values_large",
                sentence=f"{fed}: mean and std are of pixels from 0 to 1 and `scale` is {how.scale:g}, "
                "so set `scale` to 255",
            )
        if (how is None or not how.normalises or largest > 300) and not input_arithmetic(e.proto, name).operators:
            return Finding(
                code="values_large",
                sentence=f"{fed}, which is right only for a network that was trained on pixels from 0 to 255: "
                "else divide the pixels by 255 before mean and std are applied",
            )
    return None


def _normalised_twice(e: _Evidence) -> Finding | None:
    """Find normalisation of the data that the graph does again."""
    for name, images in e.images().items():
        arithmetic = input_arithmetic(e.proto, name)
        if not arithmetic.operators:
            continue
        low, high = float(images.min()), float(images.max())
        begins = f"the model begins with {', '.join(arithmetic.operators)} of input '{name}' by constants"
        scale = 1 if arithmetic.mean > 2 or (arithmetic.mean == 0 and abs(arithmetic.factor).max() < 1 / 50) else 255
        if low < 0 and arithmetic.shift.any() and arithmetic.mean > 0:
            return Finding(
                code="normalised_twice",
                sentence=f"{begins}, which normalises images, and is fed images that are normalised already ({low:.3g} "
                f"to {high:.3g}): leave `preset`, `mean` and `std` out and set `scale` to {scale}",
            )
        if scale == 1 and low >= 0 and high <= 2:
            return Finding(
                code="scaled_twice",
                sentence=f"{begins}, made for pixels from 0 to 255, and is fed values from {low:.3g} to {high:.3g}: "
                "set `scale` to 1",
            )
    return None


def _ready(e: _Evidence) -> Finding | None:
    """Find that the preprocessing is not applied, as stored floats count as normalised; those in [0, 1] rarely are."""
    if e.origin is None or not e.origin.ready or e.origin.preprocess is None or not e.origin.preprocess.normalises:
        return None
    for images in e.images().values():
        low, high = float(images.min()), float(images.max())
        what = f"the images of '{e.origin.path}' are floats from {low:.3g} to {high:.3g}, fed as they are"
        if low >= 0 and high <= 1:
            return Finding(
                code="ready_floats",
                sentence=f"{what}, and `preset`, `mean` and `std` are not applied: store them as uint8 from 0 to 255, "
                "or normalised",
            )
        return Finding(
            code="ready",
            sentence=f"{what}, so `preset`, `mean` and `std` are not applied: leave them out if they are normalised",
        )
    return None


CHECKS: tuple[Callable[[_Evidence], Finding | None], ...] = (
    _skipped, _head, _case, _ready, _normalised_twice, _apart, _range, _one_label, _one_answer, _near_chance, _entropy,
)  # fmt: skip
"""All checks; an earlier one may find the cause of what a later one sees."""
