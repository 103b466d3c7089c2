"""How far a changed network's outputs are from the original's: KL divergence, squared error, and top-1 with labels.

The measure depends on the kind of the output (`passes.graph.outputs`). Class scores are compared by the KL divergence
of their softmax. One column of logits, or independent probabilities, are compared by the KL divergence of the
distribution of each probability and its complement. The values of any other output are modelled as Gaussians with the
variance of the original's values, whose KL divergence is half the squared error divided by the variance.

Throughout, an output of a network is a list of batches, one array each, and `images` is the number of images of each
batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_expit, log_softmax

from passes.core.differences import difference, relative_difference
from passes.core.errors import ModelError
from passes.graph.outputs import ROWS_VARY, Output

__all__ = [
    "check_comparable",
    "choices",
    "class_logs",
    "divergence",
    "divergences",
    "images_first",
    "kl_divergence",
    "largest_difference",
    "log_probabilities",
    "of_no_answer",
    "settled",
    "temperature",
    "top1",
]

# Target mean of the top-1 probability when the temperature is chosen.
SURE = 0.95
# Upper bound on the temperature.
HIGHEST = 1e3
# Lower bound on probabilities before their logarithm is taken.
SMALLEST = 1e-30
# Lower bound on the variance of a column of boxes, as a share of the column's mean square. A second bound is the square
# of this number, as a share of the mean variance of all columns. Both limit the weight of (nearly) constant columns.
LEAST_SPREAD = 1e-6
# Largest difference, as a share of the largest value, by which an output counts as the same for all images.
SAME = 1e-6

SCORES = Output("scores", "scores", "scores")
Batches = Sequence[np.ndarray]


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Log class probabilities (N, K), float64, from logits, or from probabilities of a network that ends in Softmax.

    Outputs (N, ...) whose values are non-negative and sum to 1 are taken as probabilities.
    """
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    if (flat >= 0).all() and np.allclose(flat.sum(1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(flat, SMALLEST)))
    return np.asarray(log_softmax(flat, axis=1))


def class_logs(output: Output, batch: np.ndarray, images: int) -> np.ndarray:
    """Log class probabilities (images, P, K), float64, at each of the P places of an output that chooses classes.

    The places of an image are the pixels of a segmentation, the crops that are folded into the batch, or the columns of
    independent probabilities; the scores of a classifier have one place. A place with one column has two classes, "no"
    and "yes".
    """
    moved = batch.reshape(-1, 1)
    if batch.ndim > 1:
        moved = np.moveaxis(batch, (output.images, output.axis), (0, -1))
    if output.kind == "probability" or (output.kind == "probabilities" and moved.shape[-1] == 1):
        p = moved.reshape(-1, 1).astype(np.float64)
        logs = np.log(np.maximum(np.concatenate([1 - p, p], 1), SMALLEST))
    elif output.kind == "logit" or moved.shape[-1] == 1:
        z = moved.reshape(-1, 1).astype(np.float64)
        logs = log_expit(np.concatenate([-z, z], 1))
    else:
        logs = log_probabilities(np.ascontiguousarray(moved).reshape(-1, moved.shape[-1]))
    return np.asarray(logs.reshape(images, -1, logs.shape[1]))


def choices(output: Output, outputs: Batches, images: Sequence[int]) -> np.ndarray:
    """The class that is chosen at each place, (N, P); for one column, 1 where the probability is above one half."""
    logs = (class_logs(output, batch, n) for batch, n in zip(outputs, images, strict=True))
    return np.concatenate([batch.argmax(-1) for batch in logs])


def images_first(output: Output, batch: np.ndarray, images: int) -> np.ndarray:
    """A batch with the images on axis 0; if an image has several rows, these become axis 1.

    If the number of rows is no multiple of the number of images, only the axes are moved.
    """
    if batch.ndim <= output.images:
        return batch
    moved = np.moveaxis(batch, output.images, 0)
    if len(moved) == images or len(moved) % images:
        return moved
    return moved.reshape(images, len(moved) // images, *moved.shape[1:])


def settled(judged: Sequence[Output], reference: Sequence[Batches], images: Sequence[int]) -> list[Output]:
    """Correct the kinds of outputs whose axes the graph leaves open, from the shapes of their values in a run.

    Args:
        judged: the outputs.
        reference: values of each output of the original, batch by batch.
        images: number of images of each batch.

    Returns:
        The outputs in the same order. An output becomes "other" if its number of rows varies with the images, or if
        its values do not; "map" if it chooses classes without an entry for each image; and "logit" if its scores have
        one column.
    """
    found = []
    for output, batches in zip(judged, reference, strict=True):
        full = [b for b, n in zip(batches, images, strict=True) if n == images[0]]
        rows = {_rows(output, b, n) for b, n in zip(batches, images, strict=True)}
        alike = len({b.shape for b in full}) == 1
        if not alike or (rows != {None} and len(rows) > 1):
            output = replace(output, kind="other", why=ROWS_VARY)
        elif sum(images) > 1 and _tells_nothing(output, batches, images):
            why = "one value for all images of a run" if rows == {None} else "the same for all images"
            output = replace(output, kind="other", why=why + (" (at one image a run)" if images[0] == 1 else ""))
        elif output.classes and (rows == {None} or batches[0].size == 0):
            output = replace(output, kind="map")  # no entry for each image
        elif output.kind == "scores" and batches[0].ndim > output.axis and batches[0].shape[output.axis] == 1:
            output = replace(output, kind="logit")
        found.append(output)
    return found


def check_comparable(outputs: Sequence[Output]) -> None:
    """Check that one of a model's outputs can be compared.

    Raises:
        ModelError: none can; the message says why of each.
    """
    if all(output.kind == "other" for output in outputs):
        what = ", ".join(f"'{output.name}': {output.what}" for output in outputs)
        raise ModelError(
            f"the model has no output that can be compared ({what}): export one that differs with the image, too"
        )


def _rows(output: Output, batch: np.ndarray, images: int) -> tuple[int, ...] | None:
    """Number of rows per image and the shape of a row; None if the rows do not belong to single images."""
    if batch.ndim <= output.images or batch.shape[output.images] % images:
        return None
    moved = np.moveaxis(batch, output.images, 0)
    return (len(moved) // images, *moved.shape[1:])


def _tells_nothing(output: Output, batches: Batches, images: Sequence[int]) -> bool:
    """Whether an output is the same for all images, or for all runs if it has no entry for each image.

    An output that relates the images of a batch to each other is the same for all where one image runs at a time.
    Differences as small as the rounding errors of float32 do not count.
    """
    batches = [images_first(output, np.atleast_1d(b), n) for b, n in zip(batches, images, strict=True)]
    if all(len(b) == n for b, n in zip(batches, images, strict=True)):
        rows = (row for b in batches for row in b)
    elif batches[0].size > 1:  # the axis of the images is not known, and the values may differ along it
        return False
    else:
        rows = (b.reshape(-1) for b in batches)
    first = next(rows)
    return all(relative_difference(first, row) <= SAME for row in rows)


def kl_divergence(reference: Batches, outputs: Batches) -> float:
    """Mean KL(reference ‖ outputs) over all images, in nats; both are lists of batches of class scores (n, K)."""
    return max(float(_kl(SCORES, reference, outputs, [len(b) for b in reference]).mean()), 0.0)


def temperature(reference: Batches, output: Output = SCORES, images: Sequence[int] | None = None) -> float:
    """The least temperature, 1 or more, at which the mean top-1 probability over the images is at most `SURE`.

    A network is confident on images that it was trained on, so the KL divergence would come from the few images on
    which it is not, and its mean over some hundred images would be a poor estimate. With a temperature (Hinton et al.,
    arXiv:1503.02531) every image contributes. The result is 1 where no temperature up to `HIGHEST` suffices.
    """
    counts = [len(batch) for batch in reference] if images is None else images
    logs = np.concatenate([class_logs(output, batch, n) for batch, n in zip(reference, counts, strict=True)])
    logs = logs.reshape(-1, logs.shape[-1])

    def excess(log_temperature: float) -> float:
        return float(np.exp(log_softmax(logs / np.exp(log_temperature), axis=1)).max(1).mean()) - SURE

    highest = float(np.log(HIGHEST))
    if excess(0.0) <= 0 or excess(highest) >= 0:  # the latter for an output of one class
        return 1.0
    return float(np.exp(brentq(excess, 0.0, highest, xtol=1e-3)))


def _kl(
    output: Output, reference: Batches, outputs: Batches, images: Sequence[int], temperature: float = 1.0
) -> np.ndarray:
    """KL divergence of each image at a temperature, times its square, in nats (N,).

    It is the mean over the places of an image, but the sum over independent probabilities.
    """
    found = []
    for a, b, n in zip(reference, outputs, images, strict=True):
        if a.size != b.size:
            raise _differ(output, a, b)
        logs = [class_logs(output, side, n) for side in (a, b)]
        log_p, log_q = (log_softmax(side.reshape(-1, side.shape[-1]) / temperature, axis=1) for side in logs)
        log_q = np.where(np.isneginf(log_q), math.log(SMALLEST), log_q)  # a class that is masked out
        p = np.exp(log_p)
        nats = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)  # not log(p / q), as q may underflow
        places = (temperature**2 * (p * nats).sum(1)).reshape(n, -1)
        found.append(places.sum(1) if output.kind == "probability" else places.mean(1))
    return np.concatenate(found)


def divergence(
    reference: Sequence[Batches],
    outputs: Sequence[Batches],
    judged: Sequence[Output] | None = None,
    images: Sequence[int] | None = None,
) -> float:
    """The mean of `divergences` over the images, in nats; arguments and errors as there."""
    return max(float(divergences(reference, outputs, judged=judged, images=images).mean()), 0.0)


def divergences(
    reference: Sequence[Batches],
    outputs: Sequence[Batches],
    spread: Sequence[Batches] | None = None,
    temperature: float = 1.0,
    judged: Sequence[Output] | None = None,
    images: Sequence[int] | None = None,
) -> np.ndarray:
    """The divergence of each image in nats, float64 (N,), summed over all outputs of a network.

    For an output that chooses classes it is the KL divergence at a temperature, times its square, which keeps the
    effect of small differences of logits about the same at every temperature. For any other output it is half the
    squared error divided by the variance of the output's values in `spread`.

    Args:
        reference: outputs of the original.
        outputs: outputs of the changed network.
        spread: outputs of the original on more images, for the variance; default: `reference`.
        temperature: the temperature.
        judged: descriptions of the outputs; default: class scores for the first output and those with two axes, and
            "map" for the others.
        images: number of images of each batch; default: the number of rows of the first output.

    Raises:
        ModelError: the shapes of an output differ between the two networks.
    """
    images = [len(batch) for batch in reference[0]] if images is None else images
    if judged is None:
        judged = [SCORES if i == 0 or a[0].ndim == 2 else replace(SCORES, kind="map") for i, a in enumerate(reference)]
    total = np.zeros(sum(images))
    for output, a, b, all_ in zip(judged, reference, outputs, spread or reference, strict=True):
        if output.classes:
            total += _kl(output, a, b, images, temperature)
        elif output.kind != "other":
            total += _gaussian(output, a, b, all_, images)
    return total


def of_no_answer(judged: Sequence[Output], reference: Sequence[Batches], images: Sequence[int]) -> float:
    """Upper bound on the mean divergence, in nats, of answers that do not depend on the image.

    Equal probabilities of K classes have a KL divergence of at most log K; the mean value, with half a squared standard
    deviation of error, has 1/2.

    Args:
        judged: descriptions of the outputs.
        reference: outputs of the original.
        images: number of images of each batch.
    """
    total = 0.0
    for output, batches in zip(judged, reference, strict=True):
        if output.classes:
            _, places, classes = class_logs(output, batches[0], images[0]).shape
            total += math.log(classes) * (places if output.kind == "probability" else 1)
        elif output.kind != "other":
            total += 0.5
    return total


def _gaussian(
    output: Output, reference: Batches, outputs: Batches, spread: Batches, images: Sequence[int]
) -> np.ndarray:
    variance = _variance(output, spread)
    found, apart = [], True
    for a, b, n in zip(reference, outputs, images, strict=True):
        if a.shape != b.shape:
            raise _differ(output, a, b)
        squares = difference(np.atleast_1d(a), np.atleast_1d(b)) ** 2 / (2 * variance)
        squares = images_first(output, squares, n)
        apart = apart and len(squares) == n
        found.append(squares)
    if not apart:  # no entry for each image
        return np.full(sum(images), np.mean([squares.mean() for squares in found]))
    return np.concatenate([squares.reshape(len(squares), -1).mean(1) for squares in found])


def largest_difference(reference: Batches, outputs: Batches) -> float:
    """The largest absolute difference of an output's values; infinities of one sign do not differ."""
    return max(float(np.abs(difference(a, b)).max(initial=0.0)) for a, b in zip(reference, outputs, strict=True))


def _variance(output: Output, spread: Batches) -> np.ndarray | float:
    """Variance of all values of an output; for boxes, of each column, as coordinates and scores differ in unit."""
    tiny = np.finfo(float).tiny
    if output.kind != "boxes" or spread[0].ndim < 2:
        values = np.concatenate([b.ravel() for b in spread]).astype(np.float64)
        return max(float(values[np.isfinite(values)].var()), tiny)
    columns = -1 if spread[0].shape[-1] <= spread[0].shape[-2] else -2
    values = np.concatenate([np.moveaxis(b, columns, -1).reshape(-1, b.shape[columns]) for b in spread])
    values = values.astype(np.float64)
    variance = np.maximum(values.var(0), LEAST_SPREAD * (values**2).mean(0))
    variance = np.maximum(variance, max(LEAST_SPREAD**2 * float(variance.mean()), tiny))
    return variance if columns == -1 else variance[:, None]


def _differ(output: Output, a: np.ndarray, b: np.ndarray) -> ModelError:
    return ModelError(
        f"output '{output.name}' is of shape {a.shape} before and {b.shape} after: leave it out of the comparison with "
        f"`judge={output.name}=other`"
    )


def top1(outputs: Batches, labels: np.ndarray) -> float:
    """Share of images whose largest score is that of the label; `outputs` is (n, K) a batch, `labels` (N,)."""
    predictions = np.concatenate([o.reshape(len(o), -1).argmax(1) for o in outputs])
    return float((predictions == labels).mean())
