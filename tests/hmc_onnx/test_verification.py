"""The comparison of two models; what the command prints of it is tested with the command."""

from __future__ import annotations

import math

import numpy as np
import pytest
from zoo import images, resnet

from calib.data.calibration import CalibrationData
from calib.measure.latency import Timings
from hmc_onnx.comparison import verification
from hmc_onnx.comparison.verification import Network, verify


@pytest.mark.parametrize(("known", "again"), [({}, False), ({1: math.inf}, False), ({1: 1e-9}, True)])
def test_what_takes_longer_than_it_is_known_to_is_timed_again(
    monkeypatch: pytest.MonkeyPatch, known: dict[int, float], again: bool
) -> None:
    model, data = resnet((1,), (4,), size=8), CalibrationData({"input": images(8, 8)}, None, "noise")
    monkeypatch.setattr(verification, "calm", lambda *_: Timings(np.full((9, 2), [2.0, 1.0])))
    timings = verify(Network(model), Network(model), data, known=known).timings
    assert [t.batch for t in timings] == [1, 8]
    assert [t.ratio == 0.5 for t in timings] == [again, False]
