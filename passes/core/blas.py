"""The number of threads of BLAS: several slow small matrices down, and round differently from one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import scipy.linalg.blas  # noqa: F401  loads its library, which the controller would miss if it came later
from threadpoolctl import ThreadpoolController

__all__ = ["NARROW", "blas_threads"]

# Features of the widest layer whose matrices are small in this sense.
NARROW = 1536


def blas_threads(most: int | None) -> AbstractContextManager[object]:
    """Within the context, BLAS uses at most so many threads; None: as many as before. It holds for all threads."""
    return _libraries().limit(limits=most, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    """The libraries of this process; to look for them takes longer than most products of matrices."""
    return ThreadpoolController()
