"""Sources of stored images, before selection and preprocessing; each kind of storage has a module that opens it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from calib.data.calibration import hash_contents
from calib.data.preprocess import FLOAT, Preprocess

__all__ = ["ReadyTensors", "Source", "StoredImages", "digest_of", "filled"]


class Source(Protocol):
    """A set of images; `take` preprocesses some of them for a network's input."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class of every image, int64 (N,), or None."""

    def __len__(self) -> int:
        """Number of images."""

    def digest(self) -> str:
        """SHA-256 (hex) that identifies the source: over the images and labels, or over files' paths and sizes."""

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """Preprocess the images at some indices.

        Args:
            indices: indices of the images, (n,).
            preprocess: how to preprocess them.
            draws: random numbers in [0, 1] for a random crop of each image, (n, 4), as for `Preprocess.apply`. None:
                the fixed preprocessing.

        Returns:
            An array (n, ...) of `preprocess.dtype`, in the order of the indices.

        Raises:
            DataError: an image cannot be read, the images differ in size, or their type cannot be produced.
        """


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in memory, uint8 (N, C, H, W) with 1 or 3 channels.

    Images that already have the final size are only normalised, whereas image files are always resized and cropped.
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
    """Preprocessed tensors (N, ...) that are fed unchanged: floats, or integers of the input's own type."""

    tensors: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.tensors)

    def digest(self) -> str:
        """As `Source.digest`."""
        return digest_of("ready", self.tensors, self.labels)

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """As `Source.take`, but `preprocess` and `draws` are ignored; floats become float32."""
        if self.tensors.dtype.kind != "f":
            return np.asarray(self.tensors[indices])
        with np.errstate(over="ignore"):  # overflow to infinity is reported later, with a clear error
            return np.asarray(self.tensors[indices], np.float32)


def digest_of(kind: str, *parts: np.ndarray | str | None) -> str:
    """SHA-256 (hex) over a kind, and over arrays (with their shapes and types) and texts."""
    sha = hashlib.sha256(kind.encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str} {part.shape}".encode())
            hash_contents(sha, part)
        else:
            sha.update(f"{part}\n".encode(errors="surrogateescape"))  # file names may not be valid UTF-8
    return sha.hexdigest()


def filled(
    count: int, shape: tuple[int, ...], load: Callable[[int], np.ndarray], dtype: np.dtype = FLOAT
) -> np.ndarray:
    """An array (count, *shape) of the results of `load` for 0 to count - 1, which runs in threads.

    Threads suffice, because Pillow releases the GIL while it decodes and resizes. The first error that `load` raises is
    raised here, and calls that have not begun by then are dropped.
    """
    out = np.empty((count, *shape), dtype)

    def put(index: int) -> None:
        out[index] = load(index)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(put, range(count)):
            pass
    return out
