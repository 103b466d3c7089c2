"""Time of one run of each of several models, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.sessions import Session

__all__ = ["Median", "Timings", "interleaved", "median"]

# How long to measure: what else the machine does comes in spells of a second and more.
SECONDS = 3.0
REPEATS, WARM_UP = 30, 3


@dataclass(frozen=True)
class Median:
    """A median, and the half-width of its 95 % interval."""

    value: float
    uncertainty: float


def median(values: np.ndarray) -> Median:
    """The median of measured values with its distribution-free interval, from order statistics: ranks n/2 ± 0.98 √n."""
    n, ordered = len(values), np.sort(values)
    spread = 0.98 * np.sqrt(n)
    low, high = max(int(n / 2 - spread), 0), min(int(n / 2 + spread), n - 1)
    return Median(float(np.median(ordered)), float(ordered[high] - ordered[low]) / 2)


@dataclass(frozen=True)
class Timings:
    """Seconds of each run (turns, models)."""

    seconds: np.ndarray

    def latency(self, model: int) -> Median:
        """Seconds of a run of one model."""
        return median(self.seconds[:, model])

    def ratio(self, model: int, base: int = 0) -> Median:
        """The time of one model as a share of another's, turn by turn: a slow spell falls on both alike."""
        return median(self.seconds[:, model] / self.seconds[:, base])


def interleaved(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], seconds: float | None = None) -> Timings:
    """Time the models in turns, so that what else the machine does falls on all of them alike.

    Args:
        sessions: one a model.
        feeds: of one run.
        seconds: how long to measure, if `REPEATS` turns take less; default: `SECONDS`.
    """
    turns: list[list[float]] = []
    start, least = time.perf_counter(), SECONDS if seconds is None else seconds
    while len(turns) < WARM_UP + REPEATS or time.perf_counter() - start < least:
        turn = []
        for session in sessions:
            before = time.perf_counter()
            session.run(feeds)
            turn.append(time.perf_counter() - before)
        turns.append(turn)
    return Timings(np.array(turns[WARM_UP:]))
