"""Sums over chunks of images, in lanes that run at once: each takes every fourth chunk, in order.

How many lanes there are does not depend on the machine, so the sums are rounded alike on every one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from calib.runtime.threads import default_threads
from passes.core.blas import NARROW, one_blas_thread

__all__ = ["in_lanes"]

LANES = 4

_T = TypeVar("_T")


def in_lanes(gather: Callable[[slice], _T], features: int) -> list[_T]:
    """What `gather` makes of the chunks of each lane, which are given as a slice of all chunks.

    A layer that is not narrow has one lane: the second moments of several would take much memory, and the threads of
    BLAS are as fast.

    Args:
        gather: called once for a lane, in threads: it must not change what the lanes share.
        features: number of inputs of the layer's matrix, (n, n) of whose second moment each lane holds.
    """
    if features > NARROW:
        return [gather(slice(None))]
    lanes = [slice(lane, None, LANES) for lane in range(LANES)]
    with one_blas_thread(), ThreadPoolExecutor(min(LANES, default_threads())) as threads:
        return list(threads.map(gather, lanes))
