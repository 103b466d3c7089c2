"""What benchmarks on trained networks and real images share."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from calib.data.calibration import CalibrationData
from calib.measure.divergence import top1
from calib.runtime.sessions import Session

__all__ = ["accuracy", "arguments"]


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser of the options that all of them have: a network, and data for it with a train and a test split."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="with a train and a labelled test split")
    parser.add_argument("--preset", default="cifar10")
    return parser


def accuracy(model: onnx.ModelProto, test: CalibrationData) -> float:
    """Top-1 on labelled images, in percent."""
    session = Session(model)
    outputs = [session.run(feeds)[0] for feeds, _ in test.chunks(250)]
    assert test.labels is not None
    return 100 * top1(outputs, test.labels)
