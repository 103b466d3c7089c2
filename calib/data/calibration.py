"""Calibration data as arrays in memory; `from_reader` makes them from Python objects such as onnxruntime's readers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from types import NoneType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from calib.data.preprocess import Preprocess
from passes.core.arguments import check_type
from passes.core.errors import DataError, SettingsError

__all__ = [
    "CalibrationData",
    "CalibrationDataReader",
    "Origin",
    "check_finite",
    "from_reader",
    "hash_contents",
    "length",
]

_BLOCK = 64  # samples to hash or to check at a time, because a copy or a mask of the whole array would be large


@dataclass(frozen=True, eq=False)
class Origin:
    """Where samples that were read from a path come from.

    Attributes:
        path: the path in printable form (see `passes.core.paths`).
        places: index of each sample among all that are stored at the path, int64 (N,).
        preprocess: the preprocessing that the user asked for; None where the path holds arrays for several inputs.
        ready: whether the stored arrays are fed to the model unchanged, without preprocessing.
        classes: name of each class folder at the path, by class number; empty where there are no class folders.
        mapped: whether the user set these class numbers, with a label map or with folders that are named by numbers.
        skipped: paths, in printable form, of the images that could not be read and were left out.
    """

    path: str
    places: np.ndarray
    preprocess: Preprocess | None = None
    ready: bool = False
    classes: Mapping[int, str] = field(default_factory=dict)
    mapped: bool = False
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Calibration samples in the form in which the model takes them.

    Attributes:
        feeds: by input name, the array (N, ...) that is fed to that input of the model; axis 0 is the samples.
        labels: class of each sample, (N,); any integer type is accepted and converted to int64. None: no labels.
        source: a phrase that says where the samples come from, for messages.
        origin: details of the path that they were read from; None for samples from Python objects.

    Raises:
        DataError: there are no inputs or no samples, the arrays differ in length, the labels are not N integers,
            or an input holds NaN or infinity.
    """

    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    source: str
    origin: Origin | None = None

    def __post_init__(self) -> None:
        how = "give a dict of numpy arrays by input name"
        check_type(self.feeds, dict, "`feeds`", how, DataError)
        for array in self.feeds.values():
            check_type(array, np.ndarray, "a value of `feeds`", how, DataError)
        check_type(
            self.labels, (np.ndarray, NoneType), "`labels`", "give a numpy array of integers, or None", DataError
        )
        lengths = {name: array.shape[0] if array.ndim else 0 for name, array in self.feeds.items()}
        if not any(lengths.values()):
            raise DataError(f"there are no samples in {self.source}: give at least one")
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"the inputs differ in their number of samples ({_listed(lengths)}) in {self.source}: "
                "give each the same number"
            )
        if self.labels is not None:
            if self.labels.shape != (len(self),) or self.labels.dtype.kind not in "iu":
                raise DataError(
                    f"the labels are {self.labels.dtype} {self.labels.shape} in {self.source}: "
                    f"give one integer for each of the {len(self)} samples"
                )
            object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))
        for name, array in self.feeds.items():
            if self.origin is None:
                check_finite(name, array, self.source)
            else:
                check_finite(name, array, f"'{self.origin.path}'", self.origin.places)

    def __len__(self) -> int:
        """Number of samples."""
        return length(self.feeds)

    def head(self, n: int) -> CalibrationData:
        """The first n samples, or all samples if there are fewer. The arrays are views.

        Raises:
            SettingsError: n is below 1.
        """
        if n < 1:
            raise SettingsError(f"cannot take the first {n} samples of {self.source}: take 1 or more")
        return self if n >= len(self) else self._part(slice(None, n), f"the first {n} of {self.source}")

    def part(self, n: int) -> tuple[CalibrationData, CalibrationData]:
        """The first n samples, and the rest; the arrays of both are views.

        Raises:
            SettingsError: one of the two parts would be empty.
        """
        self._check_parts(n)
        return self.head(n), self._part(slice(n, None), f"those held back from {self.source}")

    def split(self, n: int, seed: int = 0) -> tuple[CalibrationData, CalibrationData]:
        """n samples drawn at random, and the rest, each in the order that they have here; the arrays are copies.

        Raises:
            SettingsError: one of the two parts would be empty.
        """
        self._check_parts(n)
        order = np.random.default_rng(seed).permutation(len(self))
        drawn, rest = np.sort(order[:n]), np.sort(order[n:])
        return (
            self._part(drawn, f"{n} of {self.source}"),
            self._part(rest, f"those held back from {self.source}"),
        )

    def draw(self, n: int, seed: int = 0) -> CalibrationData:
        """n samples in random order, as copies; or all as they are, if there are not more.

        What is measured on some of the samples is measured on these, as samples are often sorted by class.

        Raises:
            SettingsError: n is below 1.
        """
        if n >= len(self):
            return self
        self._check_parts(n)
        return self._part(np.random.default_rng(seed).permutation(len(self))[:n], self.source)

    def _check_parts(self, n: int) -> None:
        if not 0 < n < len(self):
            raise SettingsError(
                f"cannot split {n} samples off {self.source}: with {len(self)} samples, split off 1 to {len(self) - 1}"
            )

    def digest(self) -> str:
        """SHA-256 (hex) of the inputs' names, types, shapes and contents, and of the labels; `source` is left out."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        arrays = sorted(self.feeds.items())
        if self.labels is not None:
            arrays.append(("", self.labels))
        header = [(name, array.dtype.str, array.shape) for name, array in arrays]
        sha = hashlib.sha256(json.dumps(header).encode())
        for _, array in arrays:
            hash_contents(sha, array)
        return sha.hexdigest()

    def chunks(self, size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
        """Feeds and labels of consecutive chunks of `size` samples, as views; the last chunk may be smaller.

        Raises:
            SettingsError: size is below 1.
        """
        if size < 1:
            raise SettingsError(f"cannot cut {self.source} into chunks of {size} samples: use 1 or more")
        parts = (slice(start, start + size) for start in range(0, len(self), size))
        return (
            ({name: array[at] for name, array in self.feeds.items()}, None if self.labels is None else self.labels[at])
            for at in parts
        )

    def _part(self, at: slice | np.ndarray, source: str) -> CalibrationData:
        """Some of the samples. They are a part of checked data, so the checks of `__post_init__` are not repeated."""
        part = object.__new__(CalibrationData)
        fields = {
            "feeds": {name: array[at] for name, array in self.feeds.items()},
            "labels": None if self.labels is None else self.labels[at],
            "source": source,
            "origin": None if self.origin is None else replace(self.origin, places=self.origin.places[at]),
        }
        part.__dict__.update(fields)
        return part


@runtime_checkable
class CalibrationDataReader(Protocol):
    """The interface of `onnxruntime.quantization.CalibrationDataReader`; its subclasses can be used unchanged."""

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch by input name, or None after the last."""


def from_reader(
    reader: CalibrationDataReader | Iterable[Any],
    samples: int | None = None,
    *,
    input_name: str | None = None,
    source: str = "a Python reader",
) -> CalibrationData:
    """Collect the samples of a reader or an iterable of batches into arrays.

    Args:
        reader: an object with `get_next`, or an iterable of batches. A batch is a dict of arrays by input name, or one
            array, or a pair of either and its labels; axis 0 of each array is the samples. A dict or an array in
            place of the iterable is a single batch.
        samples: number of samples to take; no further batch is requested once there are enough. None takes all.
        input_name: the model's input to which batches that are plain arrays belong.
        source: what to call the reader in `CalibrationData.source` and in errors.

    Raises:
        DataError: there are no samples, a batch has another form, the batches differ in inputs, types or shapes, or
            as for `CalibrationData`.
        SettingsError: samples is below 1.
    """
    check_type(samples, (Integral, NoneType), "`samples`", "give a whole number, or None for all")
    if samples is not None and samples < 1:
        raise SettingsError(f"cannot read {samples} samples from {source}: read 1 or more")
    parts: list[dict[str, np.ndarray]] = []
    label_parts: list[np.ndarray] = []
    count = 0
    for index, batch in enumerate(_batches(reader, source)):
        feeds, labels = _parsed(batch, input_name, f"batch {index} of {source}")
        size = length(feeds)
        left = size if samples is None else min(size, samples - count)
        # Copies, because a reader may fill the same arrays again for its next batch.
        parts.append({name: array[:left].copy() for name, array in feeds.items()})
        if labels is not None:
            label_parts.append(labels[:left].copy())
        _check_alike(parts, label_parts, source)
        count += left
        if count == samples:
            break
    if not count:
        raise DataError(f"{source} gave no samples: make a new one if it has been read before")
    return CalibrationData(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        np.concatenate(label_parts) if label_parts else None,
        f"{count} {'sample' if count == 1 else 'samples'} of {source}",
    )


def _batches(reader: CalibrationDataReader | Iterable[Any], source: str) -> Iterator[Any]:
    if isinstance(reader, type):
        raise DataError(f"{source} is the class {reader.__name__}: give an object of it")
    if isinstance(reader, CalibrationDataReader):
        while (batch := reader.get_next()) is not None:
            yield batch
    elif isinstance(reader, Mapping) or hasattr(reader, "__array__"):  # iterating over these would not give batches
        yield reader
    elif isinstance(reader, Iterable):
        yield from reader
    else:
        raise DataError(
            f"{source} is of type {type(reader).__name__}, which holds no samples: "
            "give an object with get_next() or an iterable of batches"
        )


def _parsed(batch: Any, input_name: str | None, where: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """A batch's arrays by input name, and its labels."""
    labels = None
    if isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            raise DataError(f"{where} has {len(batch)} parts: give the inputs, or a pair of inputs and labels")
        batch, labels = batch if len(batch) == 2 else (batch[0], None)
    if not isinstance(batch, Mapping):
        if input_name is None:
            raise DataError(f"{where} does not say which input it is for: give a dict of arrays by input name")
        batch = {input_name: batch}
    try:
        feeds = {str(name): np.asarray(array) for name, array in batch.items()}
        labels = None if labels is None else np.atleast_1d(np.asarray(labels))
    except (TypeError, ValueError, RuntimeError) as e:  # torch raises the first and last
        raise DataError(
            f"{where} is not made of arrays: give numpy arrays, or tensors on the CPU that need no gradients and are "
            "of a type that numpy has"
        ) from e
    if not feeds:
        raise DataError(f"{where} is empty: give an array for each input")
    shapes = {name: array.shape for name, array in feeds.items()} | ({} if labels is None else {"labels": labels.shape})
    if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise DataError(
            f"the arrays of {where} ({_listed(shapes)}) differ in length: give each array one row per sample, "
            "and a single image a batch axis (image[None])"
        )
    return feeds, labels


def _check_alike(parts: list[dict[str, np.ndarray]], label_parts: list[np.ndarray], source: str) -> None:
    """Raise DataError unless the last batch has the inputs, types and shapes of the first, apart from its length."""
    first, last = ({name: f"{a.dtype} {a.shape[1:]}" for name, a in part.items()} for part in (parts[0], parts[-1]))
    if first != last:
        raise DataError(
            f"batch {len(parts) - 1} of {source} ({_listed(last)}) differs from the first ({_listed(first)}): "
            "give all batches the same inputs, types and shapes"
        )
    if len(label_parts) not in (0, len(parts)):
        raise DataError(f"{source} gave labels for some batches only: give them for all or none")


def length(feeds: Mapping[str, np.ndarray]) -> int:
    """Number of samples of some feeds, one array (N, ...) for each input."""
    return len(next(iter(feeds.values())))


def hash_contents(sha: hashlib._Hash, array: np.ndarray) -> None:
    """Update a hash with the values of an array (at least one axis), in C order."""
    for start in range(0, len(array), _BLOCK):
        sha.update(array[start : start + _BLOCK].tobytes())


def check_finite(name: str, array: np.ndarray, source: str, places: np.ndarray | None = None) -> None:
    """Check that the samples of an input hold neither NaN nor infinity.

    Args:
        name: name of the input.
        array: its samples, (N, ...); arrays that are not floating-point are not checked.
        source: where the samples come from, for the message.
        places: index of each sample in the source, (N,); default: its index in the array.

    Raises:
        DataError: a sample holds one of these; the message gives its index.
    """
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), _BLOCK):
        bad = ~np.isfinite(array[start : start + _BLOCK])
        if bad.any():
            sample = start + int(bad.reshape(len(bad), -1).any(1).argmax())
            sample = sample if places is None else int(places[sample])
            raise DataError(
                f"input '{name}' holds NaN or infinity in sample {sample} of {source}: leave that sample out"
            )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items()) or "none"
