"""Storage for the many arrays of a run: in memory, or for a large model in files that are mapped when read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from passes.core.errors import OutputError, SettingsError

__all__ = ["MEMORY", "Kept", "Shelf", "moved_to"]

# Bytes below which an array stays in memory.
SMALL = 2**16
_place: ContextVar[Path | None] = ContextVar("_place", default=None)


@dataclass(frozen=True)
class Kept:
    """An array in memory, or the path of the .npy file that it is in (`held`).

    Pickling sends the array, or only the path of the file; see `moved_to` for a receiver with the files elsewhere.
    """

    held: np.ndarray | Path

    @property
    def array(self) -> np.ndarray:
        """The array, which callers must not change.

        A file is mapped anew at each call, and unmapped when the last view of it is gone.

        Raises:
            SettingsError: the file cannot be read.
        """
        return self._mapped("r")

    def writable(self) -> np.ndarray:
        """The array, to which changes are kept (in the file, if it is in one); raises as `array` does."""
        return self._mapped("r+")

    def drop(self) -> None:
        """Delete the file, if there is one, when the array is no longer needed."""
        if isinstance(self.held, Path):
            self.held.unlink(missing_ok=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.held,)

    def _mapped(self, mode: Literal["r", "r+"]) -> np.ndarray:
        if isinstance(self.held, np.ndarray):
            return self.held
        try:
            return np.asarray(np.load(self.held, mmap_mode=mode))
        except (OSError, ValueError) as e:
            raise SettingsError(f"cannot read '{self.held}' ({e}): give another `work_dir`") from e


def _unpickled(held: np.ndarray | Path) -> Kept:
    place = _place.get()
    return Kept(held if place is None or isinstance(held, np.ndarray) else place / held.name)


@contextmanager
def moved_to(folder: Path) -> Iterator[None]:
    """Context in which every `Kept` that is unpickled looks for its file in `folder`, wherever the file was before."""
    token = _place.set(folder)
    try:
        yield
    finally:
        _place.reset(token)


@dataclass(frozen=True)
class Shelf:
    """Stores arrays as files in `folder`, or in memory if that is None or the array is small."""

    folder: Path | None = None

    def keep(self, array: np.ndarray) -> Kept:
        """Store an array.

        Raises:
            OutputError: its file cannot be written, as the disk is full for example.
        """
        if self.folder is None or array.nbytes < SMALL:
            return Kept(array)
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        try:
            # of an array that is not contiguous, numpy writes each number by itself
            np.save(path, np.ascontiguousarray(array), allow_pickle=False)
        except OSError as e:
            raise OutputError(
                f"cannot write to '{self.folder}' ({e.strerror or e}): make room, or give another `work_dir` or TMPDIR"
            ) from e
        return Kept(path)


MEMORY = Shelf()
