"""An interrupted run says so, leaves no file, and ends all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import OF_DATA, PROGRESS, contents, pixels
from zoo import resnet

from passes.graph.files import save

pytestmark = pytest.mark.usefixtures("few_iterations")


@pytest.mark.parametrize(
    ("stage", "sent", "to_all", "resumable"),
    [
        ("second moments", signal.SIGINT, False, False),
        ("channels to spare", signal.SIGINT, True, True),  # as a terminal does: workers are interrupted too
        ("second moments", signal.SIGTERM, False, False),
    ],
    ids=str,
)
def test_an_interrupt(
    here: Path,
    tmp_path_factory: pytest.TempPathFactory,
    stage: str,
    sent: signal.Signals,
    to_all: bool,
    resumable: bool,
) -> None:
    save(resnet((1, 1, 1), (8, 16, 32), size=16), here / "model.onnx")
    np.savez(here / "data.npz", images=pixels(256, 3, 16, 16))
    before = contents(here)
    arguments = ["model.onnx", "--data", "data.npz", "--target", "macs=0.5", "-o", "out.onnx"]
    if resumable:
        arguments += ["--work-dir", str(tmp_path_factory.mktemp("work"))]
    process = subprocess.Popen(
        [sys.executable, "-m", "hmc_onnx", "compress", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            assert PROGRESS.fullmatch(line.rstrip()) or OF_DATA.fullmatch(line.rstrip())
            if line.startswith(stage):
                break
        (os.killpg if to_all else os.kill)(process.pid, sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        goes_on = "; the work folder keeps what was measured, and the same command goes on from it" if resumable else ""
        assert [e for e in err.splitlines() if not PROGRESS.fullmatch(e) and not OF_DATA.fullmatch(e)] == [
            f"interrupted: no output was written{goes_on}"
        ]
        assert out == ""
        assert contents(here) == before
        assert gone(process.pid, within=15), "worker processes are left"
        shared = Path("/dev/shm").glob(f"*[-_]{process.pid}[-_]*")
        assert not [p for p in shared if p.is_file() or any(p.iterdir())]  # joblib may leave an empty folder
    finally:
        if not gone(process.pid, within=0):
            os.killpg(process.pid, signal.SIGKILL)


def gone(group: int, within: float) -> bool:
    """Whether no process of a group is left, after some seconds at most."""
    deadline = time.monotonic() + within
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
