"""Time of one run of each of several models, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.sessions import Session

__all__ = ["Latency", "interleaved", "median_interval"]


@dataclass(frozen=True)
class Latency:
    """Median seconds of a run, and the half-width of its 95 % interval, in seconds."""

    median: float
    uncertainty: float


def interleaved(
    sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], *, repeats: int = 30, warm_up: int = 3
) -> list[Latency]:
    """Time the models in turns, so that what else the machine does falls on all of them alike."""
    seconds = np.zeros((repeats, len(sessions)))
    for i in range(-warm_up, repeats):
        for j, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(feeds)
            if i >= 0:
                seconds[i, j] = time.perf_counter() - start
    return [median_interval(column) for column in seconds.T]


def median_interval(seconds: np.ndarray) -> Latency:
    """The median of some measured times, with its distribution-free interval from order statistics: ranks n/2 ± 0.98 √n."""
    n, ordered = len(seconds), np.sort(seconds)
    spread = 0.98 * np.sqrt(n)
    low, high = max(int(n / 2 - spread), 0), min(int(n / 2 + spread), n - 1)
    return Latency(float(np.median(ordered)), float(ordered[high] - ordered[low]) / 2)
