"""One thread for BLAS, where matrices are small: several slow these down, and round differently from one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import scipy.linalg.blas  # noqa: F401  loads its library, which the controller would miss if it came later
from threadpoolctl import ThreadpoolController

__all__ = ["NARROW", "one_blas_thread"]

# Features of the widest layer whose matrices are small in this sense.
NARROW = 1536

_mine = threading.RLock()


@contextmanager
def one_blas_thread(narrow: bool = True) -> Iterator[None]:
    """Within the context, BLAS uses one thread, in all threads of this process; where not `narrow`, as many as before.

    While a thread has such a context open, those that other threads open change nothing: else the last to leave would
    take the one thread that it found for the number to go back to.
    """
    if not narrow or not _mine.acquire(blocking=False):
        yield
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _mine.release()


@cache
def _libraries() -> ThreadpoolController:
    """The libraries of this process; to look for them takes longer than most products of matrices."""
    return ThreadpoolController()
