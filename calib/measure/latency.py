"""Latency: the time of one run of each of several models, measured side by side.

Other load on the machine only ever adds to a time. It adds more to a network of many small kernels, because all threads
have to meet at the end of each. So it changes the ratio of two networks' medians, and the ratio of their lower deciles
much less. Therefore a time is the lower decile of many runs, and a measurement during which a model of known time took
longer is repeated.

The cores of a virtual machine may share a cache for some seconds or minutes and then not, which slows networks of small
kernels most. With two threads, one ResNet-56 took 9.7 ms and then 10.8, and a compressed one beside it 4.7 and then 6.4
(ratios of 0.49 and 0.59); with one thread they took 18.1 and 7.9 throughout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.runtime.sessions import Session

__all__ = [
    "DISTURBED",
    "PATIENCE",
    "UNSURE",
    "Enough",
    "Measurement",
    "Timings",
    "calm",
    "interleaved",
    "surer",
    "undisturbed",
]

# A turn runs each model once. Measure for at least SECONDS, because other load comes in spells of a second and more,
# and for at least WARM_UP + REPEATS turns, of which the first WARM_UP are discarded.
SECONDS = 3.0
REPEATS, WARM_UP = 30, 3
# After LONG seconds, stop at the minimum number of turns (FEW), the first of which is then the warm-up.
LONG, FEW = 6.0, 4
# A server runs one model again and again, so that much of it is in the processor's caches. In a turn another model has
# just run. Where that matters, in runs of less than COLD seconds, each model runs once before the run that is timed.
COLD = 0.05
# The quantile of a model's run times that is reported.
DECILE = 0.1
# A model that takes more than DISTURBED times its known time is disturbed; wait up to PATIENCE seconds for that to end.
DISTURBED, PATIENCE = 1.04, 10.0
# An uncertainty of a share of the time above which that share says little, and the share of `SECONDS` for which runs go
# on before the timings are looked at again.
UNSURE, MORE = 0.1, 1 / 3
# From so many turns on, `calm` asks whether timings tell enough: the interval of fewer says little.
ASKED = 9


@dataclass(frozen=True)
class Measurement:
    """A measured value and the half-width of its 95 % confidence interval, in the same unit."""

    value: float
    uncertainty: float


def undisturbed(seconds: np.ndarray) -> Measurement:
    """The lower decile of run times (n,), in seconds.

    Its confidence interval is that of order statistics: the values at ranks q n ± 1.96 √(q (1 - q) n). Of a
    single run it is ± the whole time, as one says nothing of others.
    """
    if len(seconds) == 1:
        return Measurement(float(seconds[0]), float(seconds[0]))
    n, ordered = len(seconds), np.sort(seconds)
    spread = 1.96 * np.sqrt(DECILE * (1 - DECILE) * n)
    low, high = max(int(DECILE * n - spread), 0), min(int(np.ceil(DECILE * n + spread)), n - 1)
    return Measurement(float(np.quantile(ordered, DECILE)), float(ordered[high] - ordered[low]) / 2)


@dataclass(frozen=True)
class Timings:
    """The time of every run: seconds, float64 (turns, models)."""

    seconds: np.ndarray

    def latency(self, model: int) -> Measurement:
        """The time of a run of one model, given by its index, in seconds."""
        return undisturbed(self.seconds[:, model])

    def ratio(self, model: int, base: int = 0) -> Measurement:
        """The time of one model as a share of the time of the model `base`."""
        a, b = self.latency(base), self.latency(model)
        value = b.value / a.value
        return Measurement(value, value * float(np.hypot(a.uncertainty / a.value, b.uncertainty / b.value)))

    def joined(self, other: Timings) -> Timings:
        """The times of both, which are of the same models."""
        return Timings(np.concatenate([self.seconds, other.seconds]))


# Whether timings tell what they were made for.
Enough = Callable[[Timings], bool]


def interleaved(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], share: float = 1.0) -> Timings:
    """Time the models in turns, so that other load on the machine falls on all of them alike.

    A turn of short runs begins each with one that is not timed, so that a model's time does not depend on which others
    are measured beside it.

    Args:
        sessions: one for each model.
        feeds: the inputs of one run, for all models.
        share: factor on `SECONDS`, `REPEATS`, `LONG` and `FEW`, for a shorter measurement.
    """
    turns: list[list[float]] = []
    few, enough = max(2, math.ceil(FEW * share)), WARM_UP + REPEATS * share
    start, spent = time.perf_counter(), 0.0
    while len(turns) < few or (spent < LONG * share and (len(turns) < enough or spent < SECONDS * share)):
        turn = []
        for session in sessions:
            seconds = _timed(session, feeds)
            turn.append(_timed(session, feeds) if seconds < COLD and len(sessions) > 1 else seconds)
        turns.append(turn)
        spent = time.perf_counter() - start
    return Timings(np.array(turns[min(WARM_UP, max(len(turns) // FEW, 1)) :]))


def _timed(session: Session, feeds: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def calm(
    sessions: Sequence[Session],
    feeds: Mapping[str, np.ndarray],
    known: float,
    patience: float,
    enough: Enough | None = None,
) -> Timings:
    """Like `interleaved`, but repeated while the first model is disturbed; the attempt in which it was fastest.

    Args:
        sessions, feeds: as for `interleaved`.
        known: seconds of a run of the first model when nothing disturbs it.
        patience: seconds after which no further attempt begins.
        enough: whether timings (of ASKED turns or more) tell enough, so that an attempt may end early; default: they
            never do.
    """
    end = time.perf_counter() + patience
    best = _attempt(sessions, feeds, enough)
    while best.latency(0).value > known * DISTURBED and time.perf_counter() < end:
        best = min(best, _attempt(sessions, feeds, enough), key=lambda timings: timings.latency(0).value)
    return best


def _attempt(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], enough: Enough | None) -> Timings:
    """Times in turns, and with `enough` in parts, after each of which it is asked whether these tell enough."""
    if enough is None:
        return interleaved(sessions, feeds)
    timings = interleaved(sessions, feeds, MORE)
    for _ in range(round(1 / MORE) - 1):
        if len(timings.seconds) >= ASKED and enough(timings):
            break
        timings = timings.joined(interleaved(sessions, feeds, MORE))
    return timings


def surer(timings: Timings, sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], end: float) -> Timings:
    """The timings with more turns, until the ratios to the first model are known to `UNSURE`.

    Args:
        timings: of the sessions so far.
        sessions, feeds: as for `interleaved`.
        end: `time.perf_counter()` at which no further turns begin.
    """
    others = range(1, len(sessions))
    while time.perf_counter() < end and any(timings.ratio(i).uncertainty > UNSURE for i in others):
        timings = timings.joined(interleaved(sessions, feeds, MORE))
    return timings
