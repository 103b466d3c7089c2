"""Keeps standard output clean of what libraries in C print there, as the result of `--json` stands on it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

__all__ = ["spared_stdout"]

STDOUT, STDERR = 1, 2
_ALONE = threading.RLock()


@contextlib.contextmanager
def spared_stdout() -> Iterator[None]:
    """What is printed on the process's standard output within the context goes to standard error.

    One thread at a time is within it; others wait.

    Where the process has no standard output or no standard error, nothing is done.
    """
    with _ALONE:
        yield from _spared()


def _spared() -> Iterator[None]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    try:
        kept = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError):  # C's own buffer, which would be written later
            (ctypes.cdll.ucrtbase if sys.platform == "win32" else ctypes.CDLL(None)).fflush(None)
        os.dup2(kept, STDOUT)
        os.close(kept)
