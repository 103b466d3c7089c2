"""What benchmarks of accuracy share."""

from __future__ import annotations

import onnx

from calib.data import CalibrationData
from calib.divergence import top1
from calib.sessions import Session

__all__ = ["accuracy"]


def accuracy(model: onnx.ModelProto, test: CalibrationData) -> float:
    """Top-1 on labelled images, in percent."""
    session = Session(model)
    outputs = [session.run(feeds)[0] for feeds, _ in test.chunks(250)]
    assert test.labels is not None
    return 100 * top1(outputs, test.labels)
