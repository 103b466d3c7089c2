"""Folders of image files: flat, or with one folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from calib.data.preprocess import Preprocess
from calib.data.sources import digest_of, filled
from passes.core.errors import DataError

__all__ = ["ImageFolder", "open_folder"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Image files in a fixed order, read when they are taken, and their classes, int64 (N,), or None."""

    files: tuple[Path, ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """As `Source.digest`."""
        return digest_of("files", *(f"{path} {path.stat().st_size}" for path in self.files), self.labels)

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """As `Source.take`."""
        files = [self.files[i] for i in indices]
        shape = _load(files[0], preprocess, None if draws is None else draws[0]).shape

        def load(index: int) -> np.ndarray:
            image = _load(files[index], preprocess, None if draws is None else draws[index])
            if image.shape != shape:
                raise DataError(
                    f"image '{files[index]}' comes out as {image.shape} and '{files[0]}' as {shape}: "
                    "set `size` or `preset` to bring all images to one size"
                )
            return image

        return filled(len(files), shape, load)


def open_folder(folder: Path) -> ImageFolder:
    """The image files of a folder, in the order of their names, or of its folders, one per class.

    A class is the place of its folder among all the folders, in the order of their names, or the folder's name where
    all the names are integers. Names that begin with a dot are passed over, as are files with other endings.

    Raises:
        DataError: there are no images, or images lie both in the folder and in folders within.
        OSError: a folder cannot be read.
    """
    flat = _images(folder)
    classes = sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)
    by_class = [_images(c) for c in classes]
    if flat and any(by_class):
        raise DataError(
            f"'{folder}' holds images both directly and in folders within, so it is unclear whether these are classes: "
            "give a folder of only images or only class folders"
        )
    if flat:
        return ImageFolder(tuple(flat), None)
    if not any(by_class):
        raise DataError(
            f"'{folder}' holds no images ({', '.join(sorted(_SUFFIXES))}), nor do the folders in it: "
            "give a folder of images, or of one folder per class"
        )
    numbered = all(c.name.isascii() and c.name.isdecimal() for c in classes)
    numbers = [int(c.name) for c in classes] if numbered else range(len(classes))
    labels = np.repeat(np.array(numbers, np.int64), [len(files) for files in by_class])
    return ImageFolder(tuple(file for files in by_class for file in files), labels)


def _images(folder: Path) -> list[Path]:
    """The image files right in a folder, in the order of their names, which is the same on every machine."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in files if p.is_file()), key=lambda p: p.name)


def _load(file: Path, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return preprocess.apply(image, draws)
    except DataError as e:
        raise DataError(f"cannot use image '{file}': {e}") from e
    except Exception as e:  # Pillow's decoders raise errors of many kinds, not only OSError
        raise DataError(f"cannot decode image '{file}': replace it or take it out of the folder") from e
