"""Arrays of which a run has many: held in memory, or of a large model in files, mapped when they are asked for."""

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
    """An array, or the file that it is in. It is sent to another process of the machine as it is held."""

    held: np.ndarray | Path

    @property
    def array(self) -> np.ndarray:
        """The array, not to be changed; a file is mapped anew at each call, and let go of with the last view of it."""
        return self._mapped("r")

    def writable(self) -> np.ndarray:
        """The array, of which changes stay."""
        return self._mapped("r+")

    def drop(self) -> None:
        """Remove the file, if it is in one: nobody asks for it again."""
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
    """What is unpickled within it has its files in this folder, wherever that was when they were kept."""
    token = _place.set(folder)
    try:
        yield
    finally:
        _place.reset(token)


@dataclass(frozen=True)
class Shelf:
    """Where arrays are kept: in a folder, or in memory."""

    folder: Path | None = None

    def keep(self, array: np.ndarray) -> Kept:
        """Keep an array.

        Raises:
            OutputError: there is no room for it.
        """
        if self.folder is None or array.nbytes < SMALL:
            return Kept(array)
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        try:
            np.save(path, array, allow_pickle=False)
        except OSError as e:
            raise OutputError(
                f"cannot write to '{self.folder}' ({e.strerror or e}): make room, or give another `work_dir` or TMPDIR"
            ) from e
        return Kept(path)


MEMORY = Shelf()
