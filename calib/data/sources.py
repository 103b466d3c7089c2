"""Stored images before they are chosen and preprocessed; each kind of storage has a module that opens it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from calib.data.calibration import hash_contents
from calib.data.preprocess import FLOAT, Preprocess

__all__ = ["ReadyTensors", "Source", "StoredImages", "digest_of", "filled", "shown"]


class Source(Protocol):
    """Images, of which some are taken as a network's input."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class of every image, int64 (N,), or None."""

    def __len__(self) -> int:
        """Number of images."""

    def digest(self) -> str:
        """SHA-256 in hex by which two sources are told apart: of the images, or of files their names and sizes."""

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """The images at some indices, preprocessed, the first axis along the indices.

        Args:
            indices: of the images.
            preprocess: how.
            draws: (N, 4), by which a part of each image is taken, as for `Preprocess.apply`; None: the centre.

        Raises:
            DataError: an image cannot be read, or the images come out in different sizes, or in a type that images
                cannot be made into.
        """


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in memory, uint8 (N, C, H, W) with 1 or 3 channels.

    Images that have the final size already are not resized and cropped once more, as files would be.
    """

    pixels: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.pixels)

    def digest(self) -> str:
        """As `Source.digest`."""
        return digest_of("uint8", self.pixels, self.labels)

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """As `Source.take`."""
        chosen = self.pixels[indices]
        n, c, h, w = chosen.shape
        if draws is not None:
            images, size = chosen.transpose(0, 2, 3, 1), preprocess.size or (h, w)
            planes = (preprocess.channels, *size) if preprocess.layout == "NCHW" else (*size, preprocess.channels)
            return filled(n, planes, lambda i: preprocess.apply(images[i], draws[i]), preprocess.dtype)
        if preprocess.size == (h, w):
            preprocess = replace(preprocess, resize=None)
        if preprocess.resize is None and preprocess.size in (None, (h, w)) and c in (1, preprocess.channels):
            return preprocess.apply_batch(np.broadcast_to(chosen, (n, preprocess.channels, h, w)))
        images = chosen.transpose(0, 2, 3, 1)
        shape = preprocess.apply(images[0]).shape
        return filled(n, shape, lambda i: preprocess.apply(images[i]), preprocess.dtype)


@dataclass(frozen=True, eq=False)
class ReadyTensors:
    """What goes into the network as it is, (N, ...): floats, or integers of the input's own type."""

    tensors: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.tensors)

    def digest(self) -> str:
        """As `Source.digest`."""
        return digest_of("ready", self.tensors, self.labels)

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """As `Source.take`; nothing is preprocessed, and no part is taken. Floats become float32."""
        if self.tensors.dtype.kind != "f":
            return np.asarray(self.tensors[indices])
        with np.errstate(over="ignore"):  # infinities are found later, with a clear error
            return np.asarray(self.tensors[indices], np.float32)


def digest_of(kind: str, *parts: np.ndarray | str | None) -> str:
    """SHA-256 in hex over arrays, with their shapes and types, and texts."""
    sha = hashlib.sha256(kind.encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str} {part.shape}".encode())
            hash_contents(sha, part)
        else:
            sha.update(f"{part}\n".encode(errors="surrogateescape"))  # names of files that are no UTF-8
    return sha.hexdigest()


def shown(path: Path | str) -> str:
    """A path as it can be printed: bytes that are no UTF-8 become escapes such as \\xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


def filled(
    count: int, shape: tuple[int, ...], load: Callable[[int], np.ndarray], dtype: np.dtype = FLOAT
) -> np.ndarray:
    """Array (count, *shape) of what `load` gives for 0 to count - 1, loaded in threads.

    Threads are enough, as Pillow decodes and resizes without the GIL. The first error that `load` raises is raised
    here, and what has not begun by then is not loaded.
    """
    out = np.empty((count, *shape), dtype)

    def put(index: int) -> None:
        out[index] = load(index)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(put, range(count)):
            pass
    return out
