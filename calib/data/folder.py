"""Folders of image files: a flat folder, one folder per class, or a folder for each split that holds one of these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from calib.data.preprocess import Preprocess
from calib.data.sources import digest_of, filled
from passes.core.errors import DataError, SettingsError
from passes.core.paths import shown

__all__ = ["ImageFolder", "UnreadableImage", "folder_splits", "open_folder"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Folder names that mean a split and not a class. Of several folders for one split, the first in this order is used.
_SPLITS = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test", "testing")}


class UnreadableImage(DataError):
    """An image file cannot be decoded, or has more than 8 bits per channel."""


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A `Source` of image files in a fixed order; a file is read when `take` asks for it.

    Attributes:
        files: the N files.
        labels: class of each file, int64 (N,), or None.
        classes: name of each class folder, by class number.
        numbered: whether the user set the class numbers, with a label map or with folders that are named by numbers.
    """

    files: tuple[Path, ...]
    labels: np.ndarray | None
    classes: Mapping[int, str] = field(default_factory=dict)
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """As `Source.digest`."""
        return digest_of("files", *(f"{path} {path.stat().st_size}" for path in self.files), self.labels)

    def take(self, indices: np.ndarray, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
        """As `Source.take`."""
        files = [self.files[i] for i in indices]
        first = _load(files[0], preprocess, None if draws is None else draws[0])

        def load(index: int) -> np.ndarray:
            image = _load(files[index], preprocess, None if draws is None else draws[index])
            _check_alike(image, files[index], first, files[0])
            return image

        return filled(len(files), first.shape, load, preprocess.dtype)

    def take_readable(self, indices: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
        """Preprocess the images at some indices and leave out those that cannot be read.

        Returns:
            The images (n, ...) as for `take`, and the indices (n,) that they belong to.

        Raises:
            DataError: no image can be read, or as for `take`.
        """
        start, first = self._first_readable(indices, preprocess)
        at = indices[start:]
        good = np.ones(len(at), bool)

        def load(index: int) -> np.ndarray:
            file = self.files[at[index]]
            try:
                image = _load(file, preprocess)
            except UnreadableImage:
                good[index] = False
                return np.zeros_like(first)
            _check_alike(image, file, first, self.files[at[0]])
            return image

        images = filled(len(at), first.shape, load, preprocess.dtype)
        return (images, at) if good.all() else (images[good], at[good])

    def only_readable(self, preprocess: Preprocess) -> ImageFolder:
        """The folder without the images that cannot be read."""

        def readable(index: int) -> np.ndarray:
            try:
                _load(self.files[index], preprocess)
            except UnreadableImage:
                return np.array(False)
            return np.array(True)

        good = filled(len(self), (), readable, np.dtype(bool))
        files = tuple(file for file, kept in zip(self.files, good, strict=True) if kept)
        return replace(self, files=files, labels=None if self.labels is None else self.labels[good])

    def first_readable(self, preprocess: Preprocess) -> np.ndarray:
        """The first readable image, preprocessed; raises DataError if no image can be read."""
        return self._first_readable(np.arange(len(self)), preprocess)[1]

    def _first_readable(self, indices: np.ndarray, preprocess: Preprocess) -> tuple[int, np.ndarray]:
        """Position in `indices` of the first readable image, and that image, preprocessed."""
        for place, index in enumerate(indices):
            try:
                return place, _load(self.files[index], preprocess)
            except UnreadableImage:
                continue
        raise DataError(
            f"none of the {len(indices)} images can be read, such as '{shown(self.files[indices[0]])}': "
            "give images that can be decoded"
        )


def folder_splits(folder: Path) -> tuple[str, ...]:
    """The splits ("train", "test") of a folder that holds nothing but folders named as splits; else none.

    Raises:
        OSError: the folder cannot be read.
    """
    return tuple(_split_folders(folder))


def open_folder(folder: Path, split: str = "train", names: Mapping[str, int] | None = None) -> ImageFolder:
    """List the image files of a folder: the files in it, or those in its class folders, sorted by name.

    Splits: a folder in which every subfolder is named as a split is read one split at a time. The names are train and
    training for "train", and val, valid, validation, test and testing for "test"; of several that exist, the first in
    this order is used.

    Classes: the images of a class may lie in subfolders of its folder. If all class folders are named by integers,
    these are the class numbers. Else the class folders of all splits together are sorted by name and numbered from 0.

    Names that begin with a dot and files with other suffixes are ignored.

    Args:
        folder: the folder.
        split: "train" or "test", or the name of a split's folder; ignored where there are no splits.
        names: class number by folder name; None: number the classes as above.

    Raises:
        DataError: there are no images; or images lie both in the folder and in its subfolders; or the split does not
            exist; or a class folder is not in `names`.
        OSError: a folder cannot be read.
    """
    splits = _split_folders(folder)
    every = [folder]
    if splits:
        chosen = splits.get(split) or next((f for f in _folders(folder) if f.name == split), None)
        if chosen is None:
            raise DataError(
                f"'{shown(folder)}' has no split '{split}': it has {', '.join(splits)}: give a folder that has, "
                "or one of the folders in it"
            )
        every, folder = list(splits.values()), chosen
    flat, folders = _images(folder), _folders(folder)
    by_class = {c.name: _images(c, within=True) for c in folders}
    if flat and any(by_class.values()):
        raise DataError(
            f"'{shown(folder)}' holds images both directly and in folders within, so it is unclear whether these are "
            "classes: give a folder of only images or only class folders"
        )
    if flat:
        if names is not None:
            raise DataError(f"'{shown(folder)}' has no class folders that `label_map` could number: leave it out")
        return ImageFolder(tuple(flat), None)
    if not any(by_class.values()):
        raise DataError(
            f"'{shown(folder)}' holds no images ({', '.join(_SUFFIXES)}), nor do the folders in it: "
            "give a folder of images, or of one folder per class"
        )
    known = sorted({c.name for one in every for c in _folders(one)} | set(by_class))
    numbers, numbered = _numbers(known, names, folder)
    labels = np.repeat([numbers[name] for name in by_class], [len(files) for files in by_class.values()])
    classes = {number: shown(name) for name, number in numbers.items()}
    files = tuple(file for files in by_class.values() for file in files)
    return ImageFolder(files, labels.astype(np.int64), classes, numbered)


def _numbers(known: list[str], names: Mapping[str, int] | None, folder: Path) -> tuple[dict[str, int], bool]:
    """Class number by folder name, and whether the user set the numbers (by a label map or by numeric names)."""
    if names is not None:
        missing = [name for name in known if name not in names]
        if missing:
            raise DataError(
                f"the class folder '{shown(missing[0])}' of '{shown(folder)}' is not in the label map "
                f"({len(missing)} of {len(known)} are not): add it, or move it away"
            )
        return {name: names[name] for name in known}, True
    if all(name.isascii() and name.isdecimal() for name in known):
        return {name: int(name) for name in known}, True
    return {name: number for number, name in enumerate(known)}, False


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split; empty if a subfolder is not named as a split, or images lie beside the subfolders."""
    folders = {f.name: f for f in _folders(folder)}
    known = {name for names in _SPLITS.values() for name in names}
    if not folders or not known.issuperset(folders) or _images(folder):
        return {}
    found = {split: [folders[name] for name in names if name in folders] for split, names in _SPLITS.items()}
    return {split: paths[0] for split, paths in found.items() if paths}


def _folders(folder: Path) -> list[Path]:
    """The direct subfolders of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [folder / name for name in sorted(names)]


def _images(folder: Path, within: bool = False) -> list[Path]:
    """The image files of a folder, sorted by name, so that the order is the same on every machine.

    Args:
        folder: the folder.
        within: whether to add, after these, the files of its subfolders at every depth.
    """
    names, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(_SUFFIXES) and entry.is_file():
                names.append(entry.name)
            elif within and entry.is_dir():
                folders.append(entry.name)
    found = [folder / name for name in sorted(names)]
    for name in sorted(folders):
        found += _images(folder / name, within=True)
    return found


def _check_alike(image: np.ndarray, file: Path, first: np.ndarray, first_file: Path) -> None:
    if image.shape != first.shape:
        raise DataError(
            f"image '{shown(file)}' comes out as {image.shape} and '{shown(first_file)}' as {first.shape}: "
            "set `size` or `preset` to bring all images to one size"
        )


def _load(file: Path, preprocess: Preprocess, draws: np.ndarray | None = None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return preprocess.apply(image, draws)
    except SettingsError:
        raise
    except DataError as e:
        raise UnreadableImage(f"cannot use image '{shown(file)}': {e}") from e
    except Exception as e:  # Pillow's decoders raise errors of many kinds, not only OSError
        raise UnreadableImage(
            f"cannot decode image '{shown(file)}': replace it, take it out of the folder, or set `skip_unreadable`"
        ) from e
