"""Silences graphsurgeon's own log while this package calls it, and restores it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from onnx_graphsurgeon.logger import G_LOGGER

__all__ = ["quiet"]

_lock = threading.Lock()
_inside = 0  # number of `quiet` contexts that are open, in all threads
_before = G_LOGGER.severity


@contextmanager
def quiet() -> Iterator[None]:
    """Let graphsurgeon print errors only, while the context lasts.

    It would print warnings about types that plain numpy lacks (bfloat16) and about names that are used twice, both of
    which this package handles. The severity that the host process has set is restored when the last of several
    contexts (nested, or in other threads) ends.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = G_LOGGER.severity
            G_LOGGER.severity = max(_before, G_LOGGER.ERROR)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                G_LOGGER.severity = _before
