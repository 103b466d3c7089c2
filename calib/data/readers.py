"""Calibration images from a path: .npz files, folders of images, and CIFAR as its authors publish it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.data.calibration import CalibrationData, check_finite
from calib.data.cifar import cifar_splits, open_cifar
from calib.data.folder import open_folder
from calib.data.npz import npz_splits, open_npz
from calib.data.preprocess import Preprocess
from calib.data.sources import ReadyTensors, Source
from passes.core.errors import DataError, SettingsError

__all__ = ["Selection", "open_source", "read", "splits"]


@dataclass(frozen=True)
class Selection:
    """Which of the stored images to take.

    Attributes:
        samples: how many to choose, at random without replacement, and kept in their order; all if None or if there
            are not more.
        seed: of the choice, 0 or more. The same seed chooses the same images.
        split: "train" or "test", or another that the file names; data without splits is read whatever it is.

    Raises:
        SettingsError: samples or seed is out of range.
    """

    samples: int | None = None
    seed: int = 0
    split: str = "train"

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise SettingsError(f"cannot read {self.samples} samples: ask for 1 or more")
        if self.seed < 0:
            raise SettingsError(f"seed {self.seed} is below 0: use 0 or more")

    def of(self, total: int) -> np.ndarray:
        """Places of the chosen images among `total`, rising."""
        if self.samples is None or self.samples >= total:
            return np.arange(total)
        return np.sort(np.random.default_rng(self.seed).choice(total, self.samples, replace=False))


ALL = Selection()


def read(
    path: str | os.PathLike[str],
    *,
    input_name: str,
    input_shape: tuple[int | None, ...],
    preprocess: Preprocess,
    selection: Selection = ALL,
) -> CalibrationData:
    """Read, choose and preprocess calibration images.

    Args:
        path: an .npz file (see `calib.data.npz`), a folder of images or of one folder per class (see
            `calib.data.folder`), or a folder of CIFAR-10 or CIFAR-100, binary or pickled (see `calib.data.cifar`).
        input_name: the model's input.
        input_shape: its shape with the batch axis, None for what is unknown. The batch axis is not compared.
        preprocess: applied to images, but not to stored floats, which are taken as ready. Stored arrays that have
            the final size already are normalised only.
        selection: which of the images.

    Returns:
        float32 feeds of the one input, and labels where the data has them.

    Raises:
        DataError: the path is missing or of an unknown kind, the split is not there, a file is damaged, or what
            comes out does not fit the model's input.
    """
    source = open_source(
        path, input_name=input_name, input_shape=input_shape, preprocess=preprocess, split=selection.split
    )
    total = len(source)
    chosen = selection.of(total)
    drawn = f"{total}" if len(chosen) == total else f"{len(chosen)} of {total}"
    taken = source.take(chosen, preprocess)
    if len(chosen) < total and isinstance(source, ReadyTensors):
        check_finite(input_name, taken, f"'{path}'", chosen)  # here, where a sample's place in the file is known
    return CalibrationData(
        {input_name: taken},
        None if source.labels is None else source.labels[chosen],
        f"{drawn} images of '{path}'",
    )


def open_source(
    path: str | os.PathLike[str],
    *,
    input_name: str,
    input_shape: tuple[int | None, ...],
    preprocess: Preprocess,
    split: str = "train",
) -> Source:
    """Open images to take from, after a look at whether the first fits the model; as for `read`."""
    path = Path(path).expanduser()
    try:
        source = _open(path, split, input_name)
    except OSError as e:
        raise DataError(f"cannot read '{e.filename or path}' ({e.strerror or e}): make it readable") from e
    # One image first, so that a wrong size shows before thousands are decoded.
    shape = source.take(np.arange(1), preprocess).shape[1:]
    _check_shape(shape, source, path, preprocess, input_name, input_shape)
    return source


def splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits that data at a path keeps apart, such as ("train", "test"); none where there is only one lot."""
    path = Path(path).expanduser()
    return cifar_splits(path) if path.is_dir() else npz_splits(path)


def _open(path: Path, split: str, input_name: str) -> Source:
    if path.is_dir():
        cifar = open_cifar(path, split)
        return open_folder(path) if cifar is None else cifar
    kinds = "give an .npz file, a folder of images or a CIFAR folder"
    if not path.exists():
        raise DataError(f"calibration data '{path}' does not exist: {kinds}")
    if path.suffix.lower() != ".npz":
        raise DataError(f"calibration data '{path}' is of an unknown kind: {kinds}")
    return open_npz(path, split, input_name)


def _check_shape(
    shape: tuple[int, ...],
    source: Source,
    path: Path,
    preprocess: Preprocess,
    input_name: str,
    input_shape: tuple[int | None, ...],
) -> None:
    """Raise unless one sample's shape fits the input's, telling what to set."""
    wanted = input_shape[1:]
    if len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True)):
        return
    advice = (
        "store its float tensors, which are taken as they are, in the model's shape"
        if isinstance(source, ReadyTensors)
        else _advice(shape, wanted, preprocess, input_name)
    )
    takes = ", ".join("?" if w is None else str(w) for w in wanted)
    raise DataError(
        f"images of '{path}' come out as ({', '.join(map(str, shape))}), "
        f"but the model's input '{input_name}' takes ({takes}): {advice}"
    )


def _advice(shape: tuple[int, ...], wanted: tuple[int | None, ...], preprocess: Preprocess, input_name: str) -> str:
    """Which options would make preprocessed images fit the input."""
    axes = {"NCHW": 0, "NHWC": -1}  # of the channels
    layouts = sorted(axes, key=lambda layout: layout != preprocess.layout)  # the one in use first
    # the layout that fits the number of channels, or else one that can with other means
    fitting = [x for x in layouts if len(wanted) == 3 and wanted[axes[x]] in (None, preprocess.channels)]
    possible = fitting or [x for x in layouts if len(wanted) == 3 and wanted[axes[x]] in (1, 3)]
    if not possible:
        return f"images cannot fit this, so store ready float tensors as '{input_name}' in an .npz file"
    layout, options = possible[0], []
    if layout != preprocess.layout:
        options.append(f"`layout='{layout}'`")
    if not fitting:
        options.append(f"`mean` and `std` (each {wanted[axes[layout]]} long)")
    sides = shape[1:] if preprocess.layout == "NCHW" else shape[:-1]
    wanted_sides = wanted[1:] if layout == "NCHW" else wanted[:-1]
    if any(w not in (None, s) for s, w in zip(sides, wanted_sides, strict=True)):
        options.append("`size` or `preset`")
    return f"set {' and '.join(options)}"
