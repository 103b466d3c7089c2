"""The activations that a walk keeps: in memory up to a bound, beyond it on disk."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

__all__ = ["Activations", "Store"]

# Files are mapped, which takes a fraction of the time of reading them into fresh memory. Windows deletes no file that
# is mapped.
MAPPED: Literal["r"] | None = None if sys.platform == "win32" else "r"


class Store:
    """Counts the bytes in memory, and provides files for what exceeds a bound. All chunks of a walk share one store.

    Args:
        memory: bytes of activations to hold in memory; None: no bound. A tensor that is read back from disk is not
            counted; a walk reads one tensor of one chunk at a time.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory
        self.used = 0
        self._folder: TemporaryDirectory[str] | None = None
        self._numbers = itertools.count()

    def place(self) -> Path:
        """The path of a new file, in a temporary folder of this store."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="hmc_onnx-")
        return Path(self._folder.name) / f"{next(self._numbers)}.npy"


class Activations(MutableMapping[str, np.ndarray]):
    """The tensors of one chunk of images, by name, as a mapping.

    Tensors that are set later count against the store's bound; the feeds belong to the caller and do not.
    """

    def __init__(self, store: Store, feeds: Mapping[str, np.ndarray]) -> None:
        self._store = store
        self._fed = dict(feeds)
        self._made: dict[str, np.ndarray | Path] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._made.get(name)
        if value is None:
            return self._fed[name]
        return np.asarray(np.load(value, mmap_mode=MAPPED)) if isinstance(value, Path) else value

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self.pop(name, None)
        store = self._store
        if store.memory is not None and store.used + value.nbytes > store.memory:
            path = store.place()
            np.save(path, value, allow_pickle=False)
            self._made[name] = path
        else:
            store.used += value.nbytes
            self._made[name] = value

    def __delitem__(self, name: str) -> None:
        value = self._made.pop(name, None)
        if value is None:
            del self._fed[name]
        elif isinstance(value, Path):
            value.unlink()
        else:
            self._store.used -= value.nbytes

    def __iter__(self) -> Iterator[str]:
        return iter({**self._fed, **self._made})

    def __len__(self) -> int:
        return len({**self._fed, **self._made})

    def __contains__(self, name: object) -> bool:
        return name in self._made or name in self._fed
