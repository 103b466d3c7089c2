"""Batch sizes: how many images a model can run at once. A fixed size may be declared, or be hidden in the graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, length
from calib.runtime.sessions import CPU, Runtime, Session
from passes.core.differences import relative_difference
from passes.core.errors import ModelError, SettingsError
from passes.graph.model import Model
from passes.graph.subgraph import nodes_between, submodel

__all__ = [
    "TOLERANCE",
    "at_once",
    "batch_size",
    "calibration_chunks",
    "declared_batch",
    "input_shapes",
    "serving_batch",
    "serving_feeds",
    "spread_feeds",
    "whole_batches",
]

# Largest difference, as a share of the largest output, that counts as rounding. The error is far larger when the batch
# axis is mistaken for another axis.
TOLERANCE = 0.01
# Upper bound on the bytes of images that run at once, and the fewest images. Activations are several times larger, and
# for very large ones each run waits for new memory.
MOST_BYTES, LEAST_IMAGES = 10e6, 8


def declared_batch(proto: onnx.ModelProto, fed: Collection[str]) -> int | None:
    """The batch size that the first fed input declares; None where it is open: a symbol, -1 or 0."""
    value = next((v for v in proto.graph.input if v.name in fed), None)
    dims = value.type.tensor_type.shape.dim if value is not None else []
    return int(dims[0].dim_value) or None if len(dims) and dims[0].dim_value > 0 else None


def input_shapes(proto: onnx.ModelProto, data: CalibrationData) -> dict[str, tuple[int, ...]]:
    """Shape of each fed input: the sizes of the data, with the declared batch size, or 1 where it is open."""
    batch = declared_batch(proto, data.feeds) or 1
    return {name: (batch, *array.shape[1:]) for name, array in data.feeds.items()}


def serving_batch(proto: onnx.ModelProto, fed: Collection[str], wanted: int | None) -> int:
    """Images per run in deployment: the wanted number, else the declared batch size, else 1.

    Raises:
        SettingsError: the model declares a batch size other than the wanted number.
    """
    declared = declared_batch(proto, fed)
    if declared and wanted and declared != wanted:
        raise SettingsError(f"`batch` {wanted}: the model takes batches of {declared}: leave `batch` out")
    return wanted or declared or 1


def serving_feeds(data: CalibrationData, batch: int) -> dict[str, np.ndarray]:
    """Feeds for one run of `batch` images; the images are repeated if the data have fewer."""
    return {name: np.resize(array[:batch], (batch, *array.shape[1:])) for name, array in data.feeds.items()}


def at_once(feeds: Mapping[str, np.ndarray], wanted: int) -> int:
    """The number of images to run at once: the wanted one, or fewer where images are large (`MOST_BYTES`)."""
    image = max(array[:1].nbytes for array in feeds.values())
    return min(wanted, max(int(MOST_BYTES / image), LEAST_IMAGES))


def spread_feeds(chunks: Sequence[dict[str, np.ndarray]], images: int, most: int) -> list[dict[str, np.ndarray]]:
    """About so many images, taken from all over the chunks, as these may be sorted by class; the feeds are views.

    Args:
        chunks: feeds of one number of images; the last may have fewer.
        images: how many are wanted.
        most: images in a feed; where a chunk is no multiple of it, the last feed of the chunk has fewer.
    """
    size = length(chunks[0])
    wanted = min(math.ceil(images / size), len(chunks))
    chosen = [chunks[i * len(chunks) // wanted] for i in range(wanted)]
    return [
        {name: array[start : start + most] for name, array in chunk.items()}
        for chunk in chosen
        for start in range(0, length(chunk), most)
    ]


def whole_batches(data: CalibrationData, size: int, fixed: int | None) -> list[dict[str, np.ndarray]]:
    """Feeds of `size` images each. A remainder below the fixed batch size is dropped; else it is a smaller batch."""
    chunks = [feeds for feeds, _ in data.chunks(size)]
    return chunks[:-1] if fixed and length(chunks[-1]) < fixed else chunks


def batch_size(model: Model, feeds: Mapping[str, np.ndarray], wanted: int, runtime: Runtime = CPU) -> int:
    """The batch size to measure with: the wanted one if the graph gives the same results at another size.

    This is tried out, because many models declare a fixed size that they do not need: two batches of the declared size
    (1 if it is open) are run together and one by one. Where the outputs differ, the result is the declared size, or 1.

    Args:
        model: the graph; it is run with the shapes of its inputs left open.
        feeds: images by input name, at least one batch of the declared size.
        wanted: the preferred batch size.
        runtime: as for `Session`.
    """
    fixed = declared_batch(model.header, feeds) or 1
    known = {name: array.dtype for name, array in feeds.items()}
    judged = model.compared[0]
    nodes = nodes_between(model.graph, set(known), [judged.tensor])
    if not nodes:
        return fixed
    session = Session(submodel(model, nodes, known, [judged.tensor]), runtime, timed=False)
    two = {n: np.resize(a[: 2 * fixed], (2 * fixed, *a.shape[1:])) for n, a in feeds.items()}
    halves = [session.run({n: a[at : at + fixed] for n, a in two.items()})[0] for at in (0, fixed)]
    try:
        (together,) = session.run(two)
    except ModelError:
        return fixed
    if together.ndim <= judged.images or halves[0].shape != halves[1].shape:
        return fixed
    apart = np.concatenate(halves, axis=judged.images)
    if together.shape != apart.shape:
        return fixed
    return wanted if relative_difference(apart, together) <= TOLERANCE else fixed


def calibration_chunks(
    model: Model, data: CalibrationData, samples: int, wanted: int, runtime: Runtime = CPU
) -> list[dict[str, np.ndarray]]:
    """`samples` images as feeds of `batch_size` images; a remainder below a fixed size is dropped.

    Where there are more images, the feeds are of a random draw of them, in random order.
    """
    images = data.draw(samples)
    wanted = at_once(images.feeds, wanted)
    size = batch_size(model, images.feeds, wanted, runtime)
    chunks = [feeds for feeds, _ in images.chunks(size)]
    if size != wanted and len(chunks) > 1 and len(images) % size:
        chunks.pop()
    return chunks
