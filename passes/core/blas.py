"""One thread for BLAS, where matrices are small: several slow these down, and round differently from one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import scipy.linalg.blas  # noqa: F401  loads its library, which the controller would miss if it came later
from threadpoolctl import ThreadpoolController

__all__ = ["NARROW", "one_blas_thread"]

# Features of the widest layer whose matrices are small in this sense.
NARROW = 1536


def one_blas_thread(narrow: bool = True) -> AbstractContextManager[object]:
    """Within the context, BLAS uses one thread, in all threads of this process; where not `narrow`, as many as before.

    While a context of one thread is open, those of other threads may have no effect (threadpoolctl).
    """
    return _libraries().limit(limits=1 if narrow else None, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    """The libraries of this process; to look for them takes longer than most products of matrices."""
    return ThreadpoolController()
