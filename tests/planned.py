"""The settings and the images of tests that plan for a share of the time."""

from __future__ import annotations

from zoo import images

import hmc_onnx
from calib.data.calibration import CalibrationData

SETTINGS = hmc_onnx.Settings(
    samples=32, kl_samples=16, positions=8, align=4, chunk=16, provider="cpu", threads=1, batch=4, latency=True
)


def calibration(count: int = 32) -> CalibrationData:
    return CalibrationData({"input": images(count, 8)}, None, "noise")
