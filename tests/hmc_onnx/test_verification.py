"""The comparison of two models; what the command prints of it is tested with the command."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
from zoo import images, resnet

from calib.data.calibration import CalibrationData
from calib.measure.latency import Timings
from calib.runtime.sessions import Session
from hmc_onnx.comparison import verification
from hmc_onnx.comparison.verification import Network, Serving, verify


@pytest.mark.parametrize(("seconds", "again"), [(None, False), (math.inf, False), (1e-9, True)])
def test_what_takes_longer_than_it_is_known_to_is_timed_again(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, again: bool
) -> None:
    model, data = resnet((1,), (4,), size=8), CalibrationData({"input": images(8, 8)}, None, "noise")
    monkeypatch.setattr(verification, "calm", lambda *_: Timings(np.full((9, 2), [2.0, 1.0])))
    timings = verify(Network(model), Network(model), data, serving=Serving(1, seconds)).timings
    assert [t.batch for t in timings] == [1, 8]
    assert [t.ratio == 0.5 for t in timings] == [again, False]


def test_sessions_to_be_timed_on_large_models_are_never_there_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model is one with weights in files, which `on_disk` gives it."""
    full_speed: list[weakref.ref] = []

    class Watched(Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            gc.collect()
            assert not any(ref() for ref in full_speed)
            full_speed.append(weakref.ref(self))
            super().__init__(*args, **options)

    model, data = resnet((1,), (4,), size=8), CalibrationData({"input": images(8, 8)}, None, "noise")
    small = verify(Network(model), Network(model), data)
    monkeypatch.setattr(verification, "has_external", lambda _: True)
    monkeypatch.setattr(verification, "Session", Watched)
    large = verify(Network(model), Network(model), data)
    assert len(full_speed) == 2 * verification.ROUNDS
    assert [t.batch for t in large.timings] == [t.batch for t in small.timings] == [1, 8]
    assert all(t.a > 0 and t.b > 0 for t in large.timings)
    assert (large.kl, large.agreement, large.batches) == (small.kl, small.agreement, small.batches)
