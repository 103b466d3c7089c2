"""Time of one run of each of several models, measured side by side.

What else a machine does only ever adds to a time, and adds more to a network of many small kernels, which wait for all
threads at each: the ratio of two networks' medians moves with it, that of their lower deciles much less. So a time is
the lower decile of many, and what was measured while a model known before took longer is measured again.

A virtual machine moves: for some seconds or minutes its cores share a cache or do not, which a network feels the more,
the smaller its kernels are. At two threads we saw one ResNet-56 take 9.7 ms and 10.8, and a compressed one 4.7 and 6.4
beside it (0.49 and 0.59), at one thread 18.1 and 7.9 throughout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.runtime.sessions import Session

__all__ = ["DISTURBED", "PATIENCE", "Estimate", "Timings", "calm", "interleaved", "undisturbed"]

# How long to measure: what else the machine does comes in spells of a second and more.
SECONDS = 3.0
REPEATS, WARM_UP = 30, 3
# Where they take longer than this in all, so many turns have to do, the first being the warm-up.
LONG, FEW = 12.0, 4
DECILE = 0.1
# A model that takes this much longer than before is disturbed, by a spell that may end within so many seconds.
DISTURBED, PATIENCE = 1.04, 20.0


@dataclass(frozen=True)
class Estimate:
    """A value, and the half-width of its 95 % interval."""

    value: float
    uncertainty: float


def undisturbed(seconds: np.ndarray) -> Estimate:
    """The lower decile of some times; its interval is that of order statistics: ranks q n ± 1.96 √(q (1 - q) n)."""
    n, ordered = len(seconds), np.sort(seconds)
    spread = 1.96 * np.sqrt(DECILE * (1 - DECILE) * n)
    low, high = max(int(DECILE * n - spread), 0), min(int(np.ceil(DECILE * n + spread)), n - 1)
    return Estimate(float(np.quantile(ordered, DECILE)), float(ordered[high] - ordered[low]) / 2)


@dataclass(frozen=True)
class Timings:
    """Seconds of each run (turns, models)."""

    seconds: np.ndarray

    def latency(self, model: int) -> Estimate:
        """Seconds of a run of one model."""
        return undisturbed(self.seconds[:, model])

    def ratio(self, model: int, base: int = 0) -> Estimate:
        """The time of one model as a share of another's."""
        a, b = self.latency(base), self.latency(model)
        value = b.value / a.value
        return Estimate(value, value * float(np.hypot(a.uncertainty / a.value, b.uncertainty / b.value)))


def interleaved(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], share: float = 1.0) -> Timings:
    """Time the models in turns, so that what else the machine does falls on all of them alike.

    Args:
        sessions: one a model.
        feeds: of one run.
        share: of `SECONDS`, how long to measure, if `REPEATS` turns take less; and of `LONG` and `FEW`.
    """
    turns: list[list[float]] = []
    few = max(2, math.ceil(FEW * share))
    start, spent = time.perf_counter(), 0.0
    while len(turns) < few or (spent < LONG * share and (len(turns) < WARM_UP + REPEATS or spent < SECONDS * share)):
        turn = []
        for session in sessions:
            before = time.perf_counter()
            session.run(feeds)
            turn.append(time.perf_counter() - before)
        turns.append(turn)
        spent = time.perf_counter() - start
    return Timings(np.array(turns[min(WARM_UP, max(len(turns) // FEW, 1)) :]))


def calm(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], known: float, patience: float) -> Timings:
    """`interleaved`, again while the first model takes longer than it is known to; the calmest of these.

    Args:
        sessions, feeds: see there.
        known: seconds of a run of the first model when nothing disturbs it.
        patience: seconds after which it is not measured again.
    """
    end = time.perf_counter() + patience
    best = interleaved(sessions, feeds)
    while best.latency(0).value > known * DISTURBED and time.perf_counter() < end:
        best = min(best, interleaved(sessions, feeds), key=lambda timings: timings.latency(0).value)
    return best
