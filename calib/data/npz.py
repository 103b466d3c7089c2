"""Images or ready tensors in numpy's .npz files."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calib.data.sources import ReadyTensors, Source, StoredImages
from passes.core.errors import DataError

__all__ = ["npz_splits", "open_npz"]


def npz_splits(path: Path) -> tuple[str, ...]:
    """Of "train" and "test", those that an .npz file keeps apart; none if it is no such file."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            return ()
        with archive:
            names = set(archive.files)
    except (ValueError, EOFError, zipfile.BadZipFile, OSError):
        return ()  # reading it will say what is wrong
    return tuple(s for s in ("train", "test") if names & {f"{s}_images", f"x_{s}"})


def open_npz(path: Path, split: str, input_name: str) -> Source:
    """The images of one split of an .npz file.

    Images are looked for under `{split}_images` and `x_{split}`, with labels under `{split}_labels` and `y_{split}`;
    then, for files without splits, under the input's name and `images`, with labels under `labels`. Floats are ready
    tensors; uint8 are images: (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W).

    Raises:
        DataError: the file is damaged, has no such images, or they or their labels are of another type or shape.
        OSError: the file cannot be read.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive")
        with archive:
            images_key, labels_key = _keys(archive.files, path, split, input_name)
            images = archive[images_key]
            labels = archive[labels_key] if labels_key in archive.files else None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"cannot read '{path}' as an .npz file of plain arrays: write it with numpy.savez") from e
    if not images.ndim or not len(images):
        raise DataError(f"'{images_key}' of '{path}' is empty: store at least one image")
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.size != len(images):
            raise DataError(
                f"'{labels_key}' of '{path}' is {labels.dtype} {labels.shape}: "
                f"store one integer for each of the {len(images)} images"
            )
        labels = labels.reshape(-1).astype(np.int64)
    if images.dtype.kind == "f":
        return ReadyTensors(images, labels)
    if images.dtype != np.uint8:
        raise DataError(
            f"'{images_key}' of '{path}' is {images.dtype}: "
            "store images as uint8 from 0 to 255, or floats that are normalised already"
        )
    return StoredImages(_channels_first(images, f"'{images_key}' of '{path}'", input_name), labels)


def _keys(names: Sequence[str], path: Path, split: str, input_name: str) -> tuple[str, str]:
    """Where images and labels are."""
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
        raise DataError(f"'{path}' has no split '{split}': it has {', '.join(splits)}: add '{split}_images'")
    raise DataError(
        f"'{path}' has no images among its keys ({', '.join(names) or 'none'}): "
        f"store them as 'images', '{split}_images' or '{input_name}'"
    )


def _channels_first(images: np.ndarray, where: str, input_name: str) -> np.ndarray:
    """A view as (N, C, H, W)."""
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
