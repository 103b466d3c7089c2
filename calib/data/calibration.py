"""Calibration data as arrays, and how it is gathered from Python objects such as onnxruntime's readers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from passes.core.errors import DataError, SettingsError

__all__ = ["CalibrationData", "CalibrationDataReader", "check_finite", "from_reader", "hash_contents"]

_BLOCK = 64  # samples looked at together where a mask or a copy of the whole array would be large


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Samples to calibrate on, as the model takes them.

    Attributes:
        feeds: the model's input names and what goes into them; the first axis of each array is the samples.
        labels: class of each sample, (N,), of any integer type when given and int64 from then on; or None.
        source: where the samples are from, as a part of a sentence.

    Raises:
        DataError: there are no inputs or no samples, the arrays differ in length, the labels are not N integers,
            or an input holds NaN or infinity.
    """

    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    source: str

    def __post_init__(self) -> None:
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
            check_finite(name, array, self.source)

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self.feeds.values())))

    def head(self, n: int) -> CalibrationData:
        """The first n samples, or all if there are not more. Shares memory.

        Raises:
            SettingsError: n is below 1.
        """
        if n < 1:
            raise SettingsError(f"cannot take the first {n} samples of {self.source}: take 1 or more")
        return self if n >= len(self) else self._part(slice(None, n), f"the first {n} of {self.source}")

    def split(self, n: int) -> tuple[CalibrationData, CalibrationData]:
        """The first n samples and the rest. Both share memory with this.

        Raises:
            SettingsError: one of the two parts would be empty.
        """
        if not 0 < n < len(self):
            raise SettingsError(
                f"cannot split {n} samples off {self.source}: with {len(self)} samples, split off 1 to {len(self) - 1}"
            )
        rest = self._part(slice(n, None), f"the last {len(self) - n} of {self.source}")
        return self.head(n), rest

    def digest(self) -> str:
        """SHA-256 in hex over the inputs' names, types, shapes and contents and the labels; not over `source`."""
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
        """Feeds and labels of `size` samples after another; the last chunk may be smaller. They share memory.

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

    def _part(self, at: slice, source: str) -> CalibrationData:
        """Some of the samples, without looking again for what was ruled out in all of them."""
        part = object.__new__(CalibrationData)
        fields = {
            "feeds": {name: array[at] for name, array in self.feeds.items()},
            "labels": None if self.labels is None else self.labels[at],
            "source": source,
        }
        part.__dict__.update(fields)
        return part


@runtime_checkable
class CalibrationDataReader(Protocol):
    """What onnxruntime.quantization's class of this name promises, so that its subclasses can be used as they are."""

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch by input name, or None after the last."""


def from_reader(
    reader: CalibrationDataReader | Iterable[Any],
    samples: int | None = None,
    *,
    input_name: str | None = None,
    source: str = "a Python reader",
) -> CalibrationData:
    """Gather the samples that a reader or an iterable gives, batch by batch.

    Args:
        reader: an object with `get_next`, or an iterable of batches. A batch is a dict of arrays, an array, or a
            pair of one of these and its labels; the first axis of an array is the samples. One dict or array is
            one batch.
        samples: how many to take; no batch is asked for beyond those needed. None takes all.
        input_name: the model's input that batches are for where they are arrays and not dicts.
        source: what to call the reader in `CalibrationData.source` and in errors.

    Raises:
        DataError: there are no samples, a batch is of another kind, the batches do not fit together, or as for
            `CalibrationData`.
        SettingsError: samples is below 1.
    """
    if samples is not None and samples < 1:
        raise SettingsError(f"cannot read {samples} samples from {source}: read 1 or more")
    parts: list[dict[str, np.ndarray]] = []
    label_parts: list[np.ndarray] = []
    count = 0
    for index, batch in enumerate(_batches(reader, source)):
        feeds, labels = _parsed(batch, input_name, f"batch {index} of {source}")
        size = len(next(iter(feeds.values())))
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
        f"{count} samples of {source}",
    )


def _batches(reader: CalibrationDataReader | Iterable[Any], source: str) -> Iterator[Any]:
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
            f"{where} is not made of arrays: give numpy arrays, or tensors on the CPU that need no gradients"
        ) from e
    shapes = {name: array.shape for name, array in feeds.items()} | ({} if labels is None else {"labels": labels.shape})
    if not feeds or len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise DataError(f"the arrays of {where} ({_listed(shapes)}) differ in length: give each one row a sample")
    return feeds, labels


def _check_alike(parts: list[dict[str, np.ndarray]], label_parts: list[np.ndarray], source: str) -> None:
    """Raise unless the last batch is as the first, apart from its length."""
    first, last = ({name: f"{a.dtype} {a.shape[1:]}" for name, a in part.items()} for part in (parts[0], parts[-1]))
    if first != last:
        raise DataError(
            f"batch {len(parts) - 1} of {source} ({_listed(last)}) is not as the first ({_listed(first)}): "
            "give all batches the same inputs, types and shapes"
        )
    if len(label_parts) not in (0, len(parts)):
        raise DataError(f"{source} gave labels for some batches only: give them for all or none")


def hash_contents(sha: hashlib._Hash, array: np.ndarray) -> None:
    """Take an array's values into a hash, in C order."""
    for start in range(0, len(array), _BLOCK):
        sha.update(array[start : start + _BLOCK].tobytes())


def check_finite(name: str, array: np.ndarray, source: str, places: np.ndarray | None = None) -> None:
    """Check that the samples of an input hold neither NaN nor infinity.

    Args:
        name: of the input.
        array: its samples, along the first axis.
        source: where they are from, for the message.
        places: of the samples in the source, (N,); default: their places in the array.

    Raises:
        DataError: a sample does; the message gives its place.
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
