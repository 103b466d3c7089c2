"""The images that two models answer differently, and the accuracy of each class."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from calib.data.calibration import CalibrationData
from calib.data.preprocess import Preprocess
from calib.measure.divergence import choices, divergences
from hmc_onnx.comparison.judging import predictions
from hmc_onnx.records.changes import ChangedImage, Changes, ClassAccuracy
from passes.graph.outputs import Output

__all__ = ["MOST_IMAGES", "THUMBNAIL", "find_changes", "thumbnail"]

# Number of images to keep, and the longer side of their thumbnails in pixels.
MOST_IMAGES, THUMBNAIL = 24, 64
# Images up to this many pixels a side are kept without loss; JPEG saves nothing there.
LOSSLESS = 32


def find_changes(
    output: Output,
    reference: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    images: Sequence[int],
    data: CalibrationData,
    labels: np.ndarray | None,
) -> Changes:
    """Compare the answers of two models image by image.

    Args:
        output: the output that is looked at.
        reference, answers: that output of the original and of the compressed model, batch by batch.
        images: number of images of each batch.
        data: the images, of which the first `sum(images)` were run.
        labels: class of each of these images, (N,); None where there are none, or no output that they are about.
    """
    nats = divergences([reference], [answers], judged=[output], images=images)
    chosen = [_chosen(output, side, images, labels) for side in (reference, answers)]
    before, after = chosen
    changed = None if before is None or after is None else before != after
    order = np.argsort(-nats, kind="stable")
    if labels is not None and changed is not None:
        order = order[changed[order]]
    places = np.arange(len(nats)) if data.origin is None else data.origin.places
    found = [
        ChangedImage(
            place=int(places[i]),
            label=None if labels is None else int(labels[i]),
            before=None if before is None else int(before[i]),
            after=None if after is None else int(after[i]),
            divergence=max(float(nats[i]), 0.0),
            thumbnail=thumbnail(data, int(i)),
        )
        for i in order[:MOST_IMAGES]
        if nats[i] > 0
    ]
    return Changes(
        classes=[] if labels is None or before is None or after is None else _by_class(labels, before, after),
        names={} if data.origin is None else dict(data.origin.classes),
        changed=None if changed is None else int(changed.sum()),
        images=found,
    )


def _chosen(
    output: Output, batches: Sequence[np.ndarray], images: Sequence[int], labels: np.ndarray | None
) -> np.ndarray | None:
    """The class of each image (N,); None where the output does not choose one class an image."""
    if labels is not None:
        return predictions(output, batches, images)
    if not output.classes:
        return None
    classes = choices(output, batches, images)
    return classes[:, 0] if classes.shape[1] == 1 else None


def _by_class(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[ClassAccuracy]:
    found = []
    for label in np.unique(labels):
        own = labels == label
        right = [float((side[own] == label).mean()) for side in (before, after)]
        found.append(ClassAccuracy(label=int(label), images=int(own.sum()), before=right[0], after=right[1]))
    return found


def thumbnail(data: CalibrationData, index: int) -> str | None:
    """A picture of one image as a data URI, `THUMBNAIL` pixels at most a side; None where the feed is not an image.

    Where the preprocessing is known it is undone; else the values are stretched between black and white.
    """
    if len(data.feeds) != 1:
        return None
    (feed,) = data.feeds.values()
    own = None if data.origin is None or data.origin.ready else data.origin.preprocess
    pixels = _pixels(np.asarray(feed[index]), own)
    if pixels is None:
        return None
    picture, packed = Image.fromarray(pixels), BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = "png" if max(picture.size) <= LOSSLESS else "jpeg"
    picture.save(packed, format=kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"


def _pixels(values: np.ndarray, preprocess: Preprocess | None) -> np.ndarray | None:
    """uint8 of (H, W) or (H, W, 3) from what a model is fed for an image; None where that has another form."""
    if values.ndim != 3:
        return None
    if values.shape[0] in (1, 3) and (preprocess is None or preprocess.layout == "NCHW"):
        values = np.moveaxis(values, 0, -1)
    if values.shape[-1] not in (1, 3) or min(values.shape[:2]) < 2:
        return None
    if values.dtype != np.uint8:
        values = values.astype(np.float64)
        if preprocess is not None and preprocess.channels == values.shape[-1]:
            values = (values * preprocess.std + preprocess.mean) * preprocess.scale
        else:
            low, high = values.min(), values.max()
            values = (values - low) * (255 / max(high - low, np.finfo(float).tiny))
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if preprocess is not None and preprocess.order == "bgr":
        values = values[..., ::-1]
    return np.ascontiguousarray(values[..., 0] if values.shape[-1] == 1 else values)
