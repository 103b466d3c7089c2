"""Silences the logs of graphsurgeon and onnxscript while this package calls them, and restores them afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnx_graphsurgeon.logger import G_LOGGER

__all__ = ["quiet", "quiet_folding"]


class _Silence:
    """Lets a log print errors only, in contexts that may be nested or overlap with those of other threads.

    Args:
        read: gives the log's level.
        write: sets it.
        errors: the level at which only errors are printed.
    """

    def __init__(self, read: Callable[[], int], write: Callable[[int], None], errors: int) -> None:
        self._read, self._write, self._errors = read, write, errors
        self._lock = threading.Lock()
        self._inside = self._before = 0  # number of contexts that are open; level before the first of them

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._before = self._read()
                self._write(max(self._before, self._errors))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:  # what the host process has set comes back
                    self._write(self._before)


def _set_severity(level: int) -> None:
    G_LOGGER.severity = level


_folding = logging.getLogger("onnxscript.optimizer")

# graphsurgeon would print warnings about types that plain numpy lacks (bfloat16) and about names that are used twice,
# both of which this package handles.
quiet = _Silence(lambda: G_LOGGER.severity, _set_severity, G_LOGGER.ERROR)
# onnxscript would print a warning of each node that its constant folding does not fold, which a user need not know.
quiet_folding = _Silence(lambda: _folding.level, _folding.setLevel, logging.ERROR)
