"""Latency tells models apart, and outlasts what disturbs it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from zoo import Builder

from calib.measure import latency
from calib.measure.latency import Measurement, Timings, calm, interleaved, undisturbed
from calib.runtime.sessions import Runtime, Session


def convs(width: int) -> tuple:
    b = Builder()
    return b.model(b.conv(b.conv("input", 3, width), width, 8), ("N", 3, 32, 32))


def test_each_model_has_its_time_and_the_heavier_one_more() -> None:
    light, heavy = (Session(convs(width), Runtime(threads=1)) for width in (2, 256))
    feeds = {"input": np.ones((4, 3, 32, 32), np.float32)}
    found = interleaved([heavy, light, heavy], feeds)
    assert found.seconds.shape == (latency.REPEATS, 3)
    assert found.latency(0).value > 3 * found.latency(1).value > 0
    assert found.ratio(2).value > 0.3
    assert found.ratio(1).value < 0.34


class Clocked:
    """A stand-in for sessions on a clock of its own: a run takes twice as long where another model ran before it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.last = seconds, 0.0, -1

    def session(self, model: int) -> Session:
        def run(_: object) -> None:
            self.now += self.seconds * (1 if self.last == model else 2)
            self.last = model

        return SimpleNamespace(run=run)  # type: ignore[return-value]

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("seconds", "models", "found"), [(0.01, 1, 0.01), (0.01, 3, 0.01), (1.0, 3, 2.0)])
def test_a_short_run_is_timed_with_its_own_model_in_the_caches(
    seconds: float, models: int, found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clocked(seconds)
    monkeypatch.setattr(latency, "time", clock)
    timings = interleaved([clock.session(i) for i in range(models)], {})
    np.testing.assert_allclose(timings.seconds, found)


def test_what_disturbs_some_runs_does_not_count() -> None:
    rng = np.random.default_rng(0)
    quiet = 1 + 0.01 * rng.random(1000)
    disturbed = quiet + np.where(rng.random(1000) < 0.7, rng.random(1000), 0)
    assert undisturbed(disturbed).value == pytest.approx(1, abs=0.02)
    assert undisturbed(quiet).uncertainty < undisturbed(disturbed).uncertainty
    assert Timings(np.stack([disturbed, 2 * quiet], 1)).ratio(1).value == pytest.approx(2, abs=0.04)


def test_the_interval_holds_the_decile_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        sample = np.sort(rng.random(100))
        estimate = undisturbed(sample)
        held += abs(estimate.value - 0.1) <= 2 * estimate.uncertainty
    assert held >= 0.9 * 400


def test_it_is_measured_again_until_a_known_model_takes_no_longer_than_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([3.0, 2.0, 1.03, 1.0, 1.0])
    monkeypatch.setattr(latency, "interleaved", lambda *_: Timings(np.full((9, 2), next(tries))))
    assert calm([], {}, 1.0, patience=60.0).latency(0).value == 1.03
    assert list(tries) == [1.0, 1.0]


def test_it_has_patience_for_so_long_and_takes_the_calmest(monkeypatch: pytest.MonkeyPatch) -> None:
    now, tries = iter(range(100)), iter([3.0, 2.0, 2.5, 4.0, 1.9])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(latency, "interleaved", lambda *_: Timings(np.full((9, 2), next(tries))))
    assert calm([], {}, 1.0, patience=3.0).latency(0).value == 2.0
    assert list(tries) == [4.0, 1.9]


@pytest.mark.parametrize(
    ("turns_wanted", "a_part", "parts"),
    [(1, 9, 1), (18, 9, 2), (27, 9, 3), (1000, 9, 3), (1, 5, 2), (1, 1, 3)],  # of fewer than nine turns nobody asks
)
def test_it_ends_where_the_timings_tell_enough_and_takes_no_longer_than_without_asking(
    monkeypatch: pytest.MonkeyPatch, turns_wanted: int, a_part: int, parts: int
) -> None:
    shares: list[float] = []

    def part(_sessions: object, _feeds: object, share: float) -> Timings:
        shares.append(share)
        return Timings(np.ones((a_part, 2)))

    monkeypatch.setattr(latency, "interleaved", part)
    found = calm([], {}, 1.0, 0.0, lambda timings: len(timings.seconds) >= turns_wanted)
    assert len(shares) == parts and sum(shares) == pytest.approx(parts / 3)
    assert len(found.seconds) == a_part * parts


def test_of_a_single_run_nothing_is_known() -> None:
    assert undisturbed(np.array([2.0])) == Measurement(2.0, 2.0)
    assert Timings(np.array([[1.0, 0.5]])).ratio(1).uncertainty > 0.5
