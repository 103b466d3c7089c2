"""The example of passes, run as a reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from exported import exported

SCRIPT = Path(__file__).parents[2] / "examples" / "passes.py"
BATCHNORM = "resnet20a-torchscript-17-bn"
STEPS = (
    "LiftConstantsToInitializersPass",
    "NameNodes",
    "FoldConstants",
    "FoldAffine",
    "CommonSubexpressionElimination",
)


@pytest.mark.parametrize(
    ("model", "modified"), [(None, {"LiftConstants", "FoldConstants"}), (BATCHNORM, {"LiftConstants", "FoldAffine"})]
)
def test_the_example_runs_on(model: str | None, modified: set[str], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if model is not None:
        onnx.save(exported(model), path)
    done = subprocess.run(
        [sys.executable, SCRIPT, *([path] if model else [])], check=True, capture_output=True, text=True
    )
    *steps, last = done.stdout.splitlines()
    assert len(steps) == len(STEPS)
    assert all(said.startswith(step) for said, step in zip(steps, STEPS, strict=True))
    assert "the outputs are the same" in last
    said = {step for step in steps if step.endswith(": modified")}
    assert all(any(step.startswith(name) for step in said) for name in modified)
