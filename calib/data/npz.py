"""Images, or tensors that are preprocessed already, in numpy's .npz and .npy files."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calib.data.preprocess import FLOAT
from calib.data.sources import ReadyTensors, StoredImages
from passes.core.errors import DataError
from passes.core.paths import shown

__all__ = ["npz_splits", "open_npy", "open_npz", "read_inputs"]


def npz_splits(path: Path) -> tuple[str, ...]:
    """The splits ("train", "test") that an .npz file holds; empty if the file has none or cannot be read."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            return ()
        with archive:
            names = set(archive.files)
    except (ValueError, EOFError, zipfile.BadZipFile, OSError):
        return ()  # the error is reported when the file is read
    return tuple(s for s in ("train", "test") if names & {f"{s}_images", f"x_{s}"})


def open_npz(path: Path, split: str, input_name: str, dtype: np.dtype = FLOAT) -> StoredImages | ReadyTensors:
    """Read the images of one split of an .npz file.

    The images are the first of these keys that exists, with the labels' key in brackets: `{split}_images`
    (`{split}_labels`), `x_{split}` (`y_{split}`), and for files without splits the input's name (`labels`) and `images`
    (`labels`). Arrays of uint8 are images: (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W). Floats
    are tensors that are preprocessed already; so is, under the input's name, any array of the input's element type.

    Args:
        path: path of the file.
        split: "train", "test", or another name that the keys contain.
        input_name: name of the model's input.
        dtype: element type of that input.

    Raises:
        DataError: the file is damaged, has no such images, or the images or labels have another type or shape.
        OSError: the file cannot be read.
    """
    with _opened(path) as archive:
        images_key, labels_key = _keys(archive.files, path, split, input_name)
        images = archive[images_key]
        labels = archive[labels_key] if labels_key in archive.files else None
    where = f"'{images_key}' of '{shown(path)}'"
    source = _source(images, where, input_name, dtype if images_key == input_name else FLOAT)
    return replace(source, labels=_checked(labels, len(images), f"'{labels_key}' of '{shown(path)}'"))


def open_npy(path: Path, input_name: str, dtype: np.dtype = FLOAT) -> StoredImages | ReadyTensors:
    """Read the array of an .npy file, with the rules that `open_npz` has for an array under the input's name.

    Raises:
        DataError: the file is damaged, or its array has another type or shape.
        OSError: the file cannot be read.
    """
    try:
        images = np.load(path, allow_pickle=False)
        if not isinstance(images, np.ndarray):
            raise ValueError("an archive, not an array")
    except (ValueError, EOFError) as e:
        raise DataError(
            f"cannot read '{shown(path)}' as an .npy file of a plain array: write it with numpy.save"
        ) from e
    return _source(images, f"'{shown(path)}'", input_name, dtype)


def read_inputs(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read an .npz file for a model of several inputs: the array of each input, by name, and the labels.

    The labels are the array `labels`, as int64 (N,), or None if the file has none.

    Raises:
        DataError: the file is damaged, lacks an input, or its labels are not one integer per sample.
        OSError: the file cannot be read.
    """
    with _opened(path) as archive:
        missing = [name for name in names if name not in archive.files]
        if missing:
            raise DataError(
                f"'{shown(path)}' has no array for the model's input '{missing[0]}' among its keys "
                f"({', '.join(archive.files) or 'none'}): store one array for each of {', '.join(names)}"
            )
        feeds = {name: archive[name] for name in names}
        labels = archive["labels"] if "labels" in archive.files else None
    first = feeds[names[0]]
    return feeds, _checked(labels, len(first) if first.ndim else 0, f"'labels' of '{shown(path)}'")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an archive. Damage may show only while its arrays are read, so the context converts these errors, too."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive")
        with archive:
            yield archive
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(
            f"cannot read '{shown(path)}' as an .npz file of plain arrays: write it with numpy.savez"
        ) from e


def _source(images: np.ndarray, where: str, input_name: str, dtype: np.dtype) -> StoredImages | ReadyTensors:
    """An array as images (uint8), or as tensors that are preprocessed already (floats, or the input's own type)."""
    if not images.ndim or not len(images):
        raise DataError(f"{where} is empty: store at least one image")
    if images.dtype.kind == "f" or images.dtype == dtype:
        return ReadyTensors(images, None)
    if images.dtype != np.uint8:
        raise DataError(
            f"{where} is {images.dtype}: store images as uint8 from 0 to 255, or floats that are normalised already"
        )
    return StoredImages(_channels_first(images, where, input_name), None)


def _checked(labels: np.ndarray | None, count: int, where: str) -> np.ndarray | None:
    """Labels as int64 (N,)."""
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.size != count:
        raise DataError(f"{where} is {labels.dtype} {labels.shape}: store one integer for each of the {count} images")
    return labels.reshape(-1).astype(np.int64)


def _keys(names: Sequence[str], path: Path, split: str, input_name: str) -> tuple[str, str]:
    """The keys of the images and of their labels; the file need not have the second."""
    pairs = [
        (f"{split}_images", f"{split}_labels"),
        (f"x_{split}", f"y_{split}"),
        (input_name, "labels"),
        ("images", "labels"),
    ]
    for images_key, labels_key in pairs:
        if images_key in names:
            return images_key, labels_key
    splits = sorted({m[1] or m[2] for m in (re.fullmatch(r"(.+)_images|x_(.+)", name) for name in names) if m})
    if splits:
        raise DataError(f"'{shown(path)}' has no split '{split}': it has {', '.join(splits)}: add '{split}_images'")
    raise DataError(
        f"'{shown(path)}' has no images among its keys ({', '.join(names) or 'none'}): "
        f"store them as 'images', '{split}_images' or '{input_name}'"
    )


def _channels_first(images: np.ndarray, where: str, input_name: str) -> np.ndarray:
    """The images as a view (N, C, H, W)."""
    if images.ndim == 3 and (images.shape[0] == 3 or images.shape[-1] in (1, 3)):
        raise DataError(
            f"{where} has shape {images.shape}, which is one image without a batch axis, or very few grey ones: "
            "add the axis (array[None] for one image, array[:, None] for grey ones)"
        )
    if images.ndim == 3:
        return images[:, None]
    first, last = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (1, -1))
    if first and last:
        raise DataError(
            f"{where} has shape {images.shape}, which could be NCHW or NHWC: "
            f"store normalised float tensors as '{input_name}' instead"
        )
    if not first and not last:
        raise DataError(
            f"{where} has shape {images.shape}: store images as (N, C, H, W) or (N, H, W, C) with 1 or 3 channels"
        )
    return images if first else images.transpose(0, 3, 1, 2)
