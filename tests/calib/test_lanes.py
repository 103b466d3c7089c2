"""Lanes: every chunk is taken once and in order, on any number of cores, and BLAS has its threads back afterwards."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from calib.measure import lanes
from calib.measure.moments import Moments
from passes.core.blas import NARROW


def of_blas() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("chunks", [1, 3, 4, 11])
def test_each_chunk_is_in_one_lane(chunks: int) -> None:
    found = lanes.in_lanes(lambda lane: list(range(chunks))[lane], 1)
    assert sorted(number for lane in found for number in lane) == list(range(chunks))
    assert all(lane == sorted(lane) for lane in found)


def test_a_wide_layer_has_one_lane() -> None:
    assert lanes.in_lanes(lambda lane: list(range(9))[lane], NARROW + 1) == [list(range(9))]


@pytest.mark.parametrize("cores", [1, 2])
def test_the_sums_do_not_depend_on_the_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = np.random.default_rng(0).normal(3, 1, (7, 40, 6))
    at_once = reduce(Moments.joined, lanes.in_lanes(lambda lane: moments_of(patches[lane]), 6))
    monkeypatch.setattr(lanes, "default_threads", lambda: cores)
    found = reduce(Moments.joined, lanes.in_lanes(lambda lane: moments_of(patches[lane]), 6))
    assert np.array_equal(found.second, at_once.second)
    np.testing.assert_allclose(found.second, np.cov(patches.reshape(-1, 6).T, bias=True), rtol=1e-10)


def moments_of(chunks: np.ndarray) -> Moments:
    found = Moments()
    for chunk in chunks:
        found.update(chunk)
    return found


def test_blas_has_one_thread_in_a_lane() -> None:
    assert all(set(lane) == {1} for lane in lanes.in_lanes(lambda _: of_blas(), 1))


def test_an_error_in_a_lane_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        lanes.in_lanes(lambda _: 1 / 0, 1)
