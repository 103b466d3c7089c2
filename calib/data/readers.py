"""Reads calibration data from a path: .npz and .npy files, folders of images, and CIFAR as its authors publish it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calib.data.calibration import CalibrationData, Origin
from calib.data.cifar import cifar_splits, open_cifar
from calib.data.folder import ImageFolder, folder_splits, open_folder
from calib.data.labels import Labelling
from calib.data.npz import npz_splits, open_npy, open_npz, read_inputs
from calib.data.preprocess import Preprocess
from calib.data.sources import ReadyTensors, StoredImages
from passes.core.errors import DataError, SettingsError
from passes.core.paths import expanded, shown

__all__ = ["Selection", "open_source", "read", "read_several", "splits"]

Opened = ImageFolder | ReadyTensors | StoredImages


@dataclass(frozen=True)
class Selection:
    """Which of the stored images to take.

    Attributes:
        samples: number of images to draw at random without replacement; they keep their stored order. None, or a number
            that is not below the total: all images.
        seed: seed of the draw, 0 or more; the same seed draws the same images.
        split: "train", "test", or another name that the file uses; ignored for data without splits.
        skip_unreadable: leave out image files that cannot be decoded; else they raise DataError.
        more: number of further images to draw from the others; they come behind the first.

    Raises:
        SettingsError: samples or seed is out of range.
    """

    samples: int | None = None
    seed: int = 0
    split: str = "train"
    skip_unreadable: bool = False
    more: int = 0

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise SettingsError(f"cannot read {self.samples} samples: ask for 1 or more")
        if self.seed < 0:
            raise SettingsError(f"seed {self.seed} is below 0: use 0 or more")

    def of(self, total: int) -> np.ndarray:
        """Indices of the drawn images among `total`: those of `samples` rising, then those of `more` rising."""
        if self.samples is None or self.samples >= total:
            return np.arange(total)
        rng = np.random.default_rng(self.seed)
        drawn = np.sort(rng.choice(total, self.samples, replace=False))
        if not self.more:
            return drawn
        others = np.setdiff1d(np.arange(total), drawn)
        return np.concatenate([drawn, np.sort(rng.choice(others, min(self.more, len(others)), replace=False))])


ALL, AS_STORED = Selection(), Labelling()


def read(
    path: str | os.PathLike[str],
    *,
    input_name: str,
    input_shape: tuple[int | None, ...],
    preprocess: Preprocess,
    selection: Selection = ALL,
    labelling: Labelling = AS_STORED,
) -> CalibrationData:
    """Read, choose and preprocess calibration images.

    Args:
        path: an .npz or .npy file (see `calib.data.npz`), a folder of images or of one folder per class (see
            `calib.data.folder`), or a folder of CIFAR-10 or CIFAR-100, binary or pickled (see `calib.data.cifar`).
        input_name: name of the model's input.
        input_shape: shape of that input with the batch axis; None for an unknown size. The batch axis is not compared.
        preprocess: how images are preprocessed. It is not applied to stored floats, nor to an array of
            `preprocess.dtype` that is stored under the input's name: both are fed unchanged. Stored images that already
            have the final size are only normalised.
        selection: which of the images to read.
        labelling: how stored labels become class numbers.

    Returns:
        Feeds for the one input, of float32 or `preprocess.dtype`, and the labels if the data have any.

    Raises:
        DataError: the path is missing or of an unknown kind, the split is missing, a file is damaged, or the
            preprocessed images do not fit the model's input.
        SettingsError: as for `Preprocess.apply_batch`.
    """
    source = open_source(
        path,
        input_name=input_name,
        input_shape=input_shape,
        preprocess=preprocess,
        selection=selection,
        labelling=labelling,
    )
    chosen = selection.of(len(source))
    drawn = _drawn(chosen, len(source))
    name = shown(Path(path))
    if isinstance(source, ImageFolder) and selection.skip_unreadable:
        images, readable = source.take_readable(chosen, preprocess)
        skipped = tuple(shown(source.files[i]) for i in np.setdiff1d(chosen, readable))
        chosen = readable
    else:
        images, skipped = source.take(chosen, preprocess), ()
    origin = Origin(name, chosen, preprocess, isinstance(source, ReadyTensors), skipped=skipped)
    if isinstance(source, ImageFolder):
        origin = replace(origin, classes=source.classes, mapped=source.numbered)
    left_out = f" ({len(skipped)} of them unreadable and left out, first '{skipped[0]}')" if skipped else ""
    labels = None if source.labels is None else source.labels[chosen]
    return CalibrationData({input_name: images}, labels, f"{drawn} images of '{name}'{left_out}", origin)


def read_several(
    path: str | os.PathLike[str], names: tuple[str, ...], selection: Selection = ALL, labelling: Labelling = AS_STORED
) -> CalibrationData:
    """Read the arrays for a model of several inputs, without preprocessing.

    Args:
        path: an .npz file with an array under the name of each input, and optionally `labels`.
        names: names of the inputs.
        selection: which of the samples to read.
        labelling: how stored labels become class numbers.

    Raises:
        DataError: the path is missing or is no .npz file, an input is missing, or the arrays differ in length.
    """
    path = expanded(path, "calibration data", DataError)
    if not path.is_file() or path.suffix.lower() != ".npz":
        raise DataError(
            f"'{shown(path)}' is not an .npz file, and the model has {len(names)} inputs ({', '.join(names)}): "
            "give an .npz file with an array for each of them by its name, or a CalibrationDataReader in Python"
        )
    try:
        feeds, labels = read_inputs(path, names)
    except OSError as e:
        raise _unreadable(path, e) from e
    everything = CalibrationData(feeds, labelling.shifted(labels, f"'{shown(path)}'"), f"'{shown(path)}'")
    chosen = selection.of(len(everything))
    return CalibrationData(
        {name: array[chosen] for name, array in feeds.items()},
        None if everything.labels is None else everything.labels[chosen],
        f"{_drawn(chosen, len(everything))} samples of '{shown(path)}'",
        Origin(shown(path), chosen, ready=True),
    )


def open_source(
    path: str | os.PathLike[str],
    *,
    input_name: str,
    input_shape: tuple[int | None, ...],
    preprocess: Preprocess,
    selection: Selection = ALL,
    labelling: Labelling = AS_STORED,
) -> Opened:
    """Open a source of images, and check that its first image fits the model; arguments and errors as for `read`."""
    path = expanded(path, "calibration data", DataError)
    try:
        source = _open(path, selection.split, input_name, preprocess.dtype, labelling)
    except OSError as e:
        raise _unreadable(path, e) from e
    source = replace(source, labels=labelling.shifted(source.labels, f"'{shown(path)}'"))
    if isinstance(source, ImageFolder):
        source = replace(source, classes={n + labelling.offset: name for n, name in source.classes.items()})
    if not isinstance(source, ReadyTensors):
        preprocess.check_type()
    # Check one image, so that a wrong size is reported before thousands are decoded.
    if isinstance(source, ImageFolder) and selection.skip_unreadable:
        shape = source.first_readable(preprocess).shape
    else:
        shape = source.take(np.arange(1), preprocess).shape[1:]
    _check_shape(shape, source, path, preprocess, input_name, input_shape)
    return source


def splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits of the data at a path, such as ("train", "test"); empty for data without splits. Raises DataError."""
    path = expanded(path, "calibration data", DataError)
    if not path.is_dir():
        return npz_splits(path)
    try:
        return cifar_splits(path) or folder_splits(path)
    except OSError as e:
        raise _unreadable(path, e) from e


def _drawn(chosen: np.ndarray, total: int) -> str:
    return f"{total}" if len(chosen) == total else f"{len(chosen)} of {total}"


def _unreadable(path: Path, error: OSError) -> DataError:
    file = error.filename if isinstance(error.filename, str | bytes) else path
    return DataError(f"cannot read '{shown(Path(os.fsdecode(file)))}' ({error.strerror or error}): make it readable")


def _open(path: Path, split: str, input_name: str, dtype: np.dtype, labelling: Labelling) -> Opened:
    if path.is_dir():
        cifar = open_cifar(path, split)
        if cifar is None:
            return open_folder(path, split, labelling.names)
        opened: Opened = cifar
    else:
        kinds = "give an .npz or .npy file, a folder of images or a CIFAR folder"
        if not path.exists():
            raise DataError(f"calibration data '{shown(path)}' does not exist: {kinds}")
        suffix = path.suffix.lower()
        if suffix not in (".npz", ".npy"):
            raise DataError(f"calibration data '{shown(path)}' is of an unknown kind: {kinds}")
        is_archive = suffix == ".npz"
        opened = open_npz(path, split, input_name, dtype) if is_archive else open_npy(path, input_name, dtype)
    if labelling.names is not None:
        raise DataError(f"'{shown(path)}' has no class folders that `label_map` could number: leave it out")
    return opened


def _check_shape(
    shape: tuple[int, ...],
    source: Opened,
    path: Path,
    preprocess: Preprocess,
    input_name: str,
    input_shape: tuple[int | None, ...],
) -> None:
    """Raise DataError unless the shape of one sample fits the input; the message says which options to set."""
    wanted = input_shape[1:]
    if len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True)):
        return
    advice = (
        "store its arrays, which are taken as they are, in the model's shape"
        if isinstance(source, ReadyTensors)
        else _advice(shape, wanted, preprocess, input_name)
    )
    takes = ", ".join("?" if w is None else str(w) for w in wanted)
    raise DataError(
        f"images of '{shown(path)}' come out as ({', '.join(map(str, shape))}), "
        f"but the model's input '{input_name}' takes ({takes}): {advice}"
    )


def _advice(shape: tuple[int, ...], wanted: tuple[int | None, ...], preprocess: Preprocess, input_name: str) -> str:
    """Which options would make preprocessed images fit the input."""
    axes = {"NCHW": 0, "NHWC": -1}  # axis of the channels in one sample
    layouts = sorted(axes, key=lambda layout: layout != preprocess.layout)  # the one in use first
    # layouts that fit the number of channels; else those that would fit with another number of means
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
