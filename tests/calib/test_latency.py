"""Latency tells models apart."""

from __future__ import annotations

import numpy as np
from zoo import Builder

from calib.latency import interleaved
from calib.sessions import Runtime, Session


def convs(width: int) -> tuple:
    b = Builder()
    return b.model(b.conv(b.conv("input", 3, width), width, 8), ("N", 3, 32, 32))


def test_each_model_has_its_time_and_the_heavier_one_more() -> None:
    light, heavy = (Session(convs(width), Runtime(threads=1)) for width in (2, 256))
    feeds = {"input": np.ones((4, 3, 32, 32), np.float32)}
    found = interleaved([heavy, light, heavy], feeds, repeats=11, warm_up=2)
    assert len(found) == 3
    assert found[0].median > 3 * found[1].median
    assert found[2].median > 3 * found[1].median
    for latency in found:
        assert latency.median > 0
        assert latency.uncertainty > 0
