"""CIFAR-10 and CIFAR-100 as their authors publish them: folders of binary records or of pickled batches."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.data.sources import StoredImages
from passes.core.errors import DataError
from passes.core.paths import shown

__all__ = ["cifar_splits", "open_cifar"]

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Format:
    splits: Mapping[str, Sequence[str]]
    label_bytes: int  # label bytes before the pixels of a binary record, the (fine) label last; 0 for pickled batches
    label_key: bytes = b""


_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_FORMATS = (
    _Format({"train": [f"{name}.bin" for name in _TRAIN], "test": ["test_batch.bin"]}, 1),
    _Format({"train": ["train.bin"], "test": ["test.bin"]}, 2),
    _Format({"train": _TRAIN, "test": ["test_batch"]}, 0, b"labels"),
    _Format({"train": ["train"], "test": ["test"]}, 0, b"fine_labels"),
)


def cifar_splits(folder: Path) -> tuple[str, ...]:
    """The splits ("train", "test") that a CIFAR folder holds; empty if the folder does not hold CIFAR."""
    return tuple(next((files for _, files in _present(folder)), {}))


def open_cifar(folder: Path, split: str) -> StoredImages | None:
    """The images of one split ("train" or "test"), or None if the folder does not hold CIFAR.

    CIFAR-100 gets its fine labels. Missing training batches are left out.

    Raises:
        DataError: the split is missing, or a file is damaged.
        OSError: a file cannot be read.
    """
    for form, found in _present(folder):
        if split not in found:
            raise DataError(f"'{shown(folder)}' has no split '{split}': it has {', '.join(found)}: give one that has")
        batches = [_binary(f, form.label_bytes) if form.label_bytes else _pickled(f, form) for f in found[split]]
        pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return StoredImages(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))
    return None


def _present(folder: Path) -> Iterator[tuple[_Format, dict[str, list[Path]]]]:
    """Each format of which the folder holds files, with the files of each split."""
    for form in _FORMATS:
        found = {
            name: files
            for name, wanted in form.splits.items()
            if (files := [folder / file for file in wanted if (folder / file).is_file()])
        }
        if found:
            yield form, found


def _binary(file: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,), uint8."""
    data = np.fromfile(file, np.uint8)
    if not data.size or data.size % (label_bytes + _PIXELS):
        raise DataError(
            f"'{shown(file)}' is damaged: its {data.size} bytes are no whole number of records of "
            f"{label_bytes + _PIXELS} bytes, so download it again"
        )
    records = data.reshape(-1, label_bytes + _PIXELS)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _pickled(file: Path, form: _Format) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072), uint8, and labels (N,)."""
    try:
        with file.open("rb") as stream:
            batch = _Unpickler(stream, encoding="bytes").load()
        pixels, labels = batch[b"data"].value, np.array(batch[form.label_key], np.int64)
        if not len(labels) or pixels.shape != (len(labels), _PIXELS):
            raise pickle.UnpicklingError(f"it holds pixels of shape {pixels.shape} for {len(labels)} labels")
    except OSError:
        raise
    except Exception as e:  # a malformed pickle can raise anything
        reason = f": {e}" if isinstance(e, pickle.UnpicklingError) else ""
        raise DataError(f"'{shown(file)}' is not a batch of CIFAR{reason}, so download it again") from e
    return pixels, labels


class _Dtype:
    """Stands in for numpy.dtype and accepts uint8 only."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}")

    def __setstate__(self, state: Any) -> None:
        """Ignore the state (byte order, alignment), which has no meaning for uint8."""


class _Array:
    """Stands in for numpy.ndarray; `value` is the array that it holds."""

    value: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, _, fortran, data = state
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    """Stands in for numpy's `_reconstruct`: makes an array whose state the unpickler sets afterwards."""
    return _Array()


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Stands in for numpy's `_frombuffer`, which pickle protocol 5 uses."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _Unpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and uint8 arrays, and refuses all else.

    A pickle can name any function for the unpickler to call. Here only the names that pickles of arrays need are
    accepted, and they stand for the functions above, which can only build uint8 arrays; numpy's own functions are never
    called with arguments from a file. (Old pickle protocols write bytes with `_codecs.encode`.)
    """

    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The stand-in for a name; raises UnpicklingError for a name that no CIFAR batch uses."""
        try:
            return self._KNOWN[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for '{module_name}.{global_name}'") from None
