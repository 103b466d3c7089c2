"""What benchmarks on trained networks and real images share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.divergence import top1
from calib.runtime.sessions import Session
from hmc_onnx.records.settings import QUICK
from passes.core.atomic import write_atomically

__all__ = ["Rows", "accuracy", "arguments", "outputs", "preprocessing", "sampled", "table"]


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser of the options that all of them have: a network, and data for it with a train and a test split."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="with a train and a labelled test split")
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--size", type=int, nargs=2, help="height and width of the input, where not the preset's")
    return parser


def preprocessing(args: argparse.Namespace) -> hmc_onnx.Preprocess:
    """How an image becomes the input, as the arguments say."""
    return hmc_onnx.preprocessing(args.preset, **({"size": tuple(args.size)} if args.size else {}))


def sampled(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Settings` by --quick, and by --samples, which goes before it; else 1,024 images."""
    given = {"samples": 1024} | (dict(QUICK) if args.quick else {})
    return given | ({"samples": args.samples} if args.samples else {})


def outputs(model: onnx.ModelProto, images: CalibrationData) -> list[np.ndarray]:
    """What a classifier answers to images, in chunks."""
    session = Session(model)
    return [session.run(feeds)[0] for feeds, _ in images.chunks(250)]


def accuracy(model: onnx.ModelProto, test: CalibrationData) -> float:
    """Top-1 on labelled images, in percent."""
    assert test.labels is not None
    return 100 * top1(outputs(model, test), test.labels)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Rows:
    """Results that are finished, by name, kept in a JSON file: a run that was cut off goes on behind them.

    Args:
        path: of the file; None: nothing is kept.
        identity: what all results depend on, as JSON has it. Results of another identity are refused.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = path, json.loads(json.dumps(identity, default=str))
        self.rows: dict[str, Any] = {}
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            if found["identity"] != self.identity:
                raise SystemExit(f"'{path}' holds results of {found['identity']}: give another --work-dir")
            self.rows = found["rows"]

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name; `make` makes it where it is not there, as JSON has it."""
        if name not in self.rows:
            self.rows[name] = make()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(
                    self.path, json.dumps({"identity": self.identity, "rows": self.rows}, indent=1).encode()
                )
        return self.rows[name]
