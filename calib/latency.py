"""Time of one run of each of several models, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.sessions import Session

__all__ = ["Latency", "interleaved"]


@dataclass(frozen=True)
class Latency:
    """Median seconds of a run, and the half-width of its 95 % interval, in seconds."""

    median: float
    uncertainty: float


def interleaved(
    sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], *, repeats: int = 30, warm_up: int = 3
) -> list[Latency]:
    """Time the models in turns, so that what else the machine does falls on all of them alike.

    The interval is the median's distribution-free one, from order statistics: ranks n/2 ± 0.98 √n.
    """
    seconds = np.zeros((repeats, len(sessions)))
    for i in range(-warm_up, repeats):
        for j, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(feeds)
            if i >= 0:
                seconds[i, j] = time.perf_counter() - start
    seconds.sort(axis=0)
    spread = 0.98 * np.sqrt(repeats)
    low, high = max(int(repeats / 2 - spread), 0), min(int(repeats / 2 + spread), repeats - 1)
    medians, widths = np.median(seconds, axis=0), (seconds[high] - seconds[low]) / 2
    return [Latency(float(m), float(w)) for m, w in zip(medians, widths, strict=True)]
