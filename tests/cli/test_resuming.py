"""A run that is killed goes on from its work folder, and ends as an unbroken one does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli

COMMAND = ["--target", "macs=0.8", "--quick", "--samples", "32", "--align", "2", "--provider", "cpu", "--threads", "1"]
COMMAND += ["--only", "*conv2/Conv"]  # few candidates, in processes of which nothing else can be changed


def start(model: Path, data: Path, output: Path, folder: Path) -> subprocess.Popen[bytes]:
    call = [sys.executable, "-m", "hmc_onnx", "compress", model, "-o", output, "--data", data, "--work-dir", folder]
    return subprocess.Popen(
        [*map(str, call), *COMMAND], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that goes on to its end, once there was one."""
    return tmp_path_factory.mktemp("whole") / "whole.onnx"


@pytest.fixture
def unbroken(cli: Cli, given: Path, whole: Path) -> bytes:
    """What a run writes that goes on to its end."""
    if not whole.exists():
        assert cli("compress", given / "model.onnx", "-o", whole, "--data", given / "plain.npz", *COMMAND).code == 0
    return whole.read_bytes()


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("second-moments", marks=pytest.mark.long),
        pytest.param("decompositions", marks=pytest.mark.long),
        "sensitivity",
        "plans",
    ],
)
def test_killed_in_the_middle_it_goes_on(
    cli: Cli, given: Path, unbroken: bytes, tmp_path: Path, request: pytest.FixtureRequest, stage: str
) -> None:
    if stage == "sensitivity":  # with workers, which go with it
        request.getfixturevalue("workers_by_default")
    output, folder = tmp_path / "small.onnx", tmp_path / "work"
    run = start(given / "model.onnx", given / "plain.npz", output, folder)
    until = time.monotonic() + 120
    while not list((folder / stage).glob("*.joblib")):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not output.exists()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.joblib")}
    assert before
    again = ["compress", given / "model.onnx", "-o", output, "--data", given / "plain.npz", *COMMAND]
    assert cli(*again, "--work-dir", folder).code == 0
    assert output.read_bytes() == unbroken
    assert all(p.stat().st_mtime_ns == time_ for p, time_ in before.items())


def test_the_folder_of_another_run_is_refused(cli: Cli, given: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    call = ["compress", given / "model.onnx", "-o", tmp_path / "a.onnx", "--data", given / "plain.npz", *COMMAND]
    assert cli(*call, "--work-dir", folder).code == 0
    for change, says in (
        ({1: given / "other.onnx"}, "another model"),
        ({5: given / "floats.npz"}, "other calibration data"),
        ({10: "24"}, "other settings"),
    ):
        other = [change.get(i, argument) for i, argument in enumerate(call)]
        done = cli(*other, "--work-dir", folder)
        assert done.code == 1
        (error,) = done.errors
        assert f"is of a run with {says}" in error or (says == "other settings" and "other calibration data" in error)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").touch()
    done = cli(*call, "--work-dir", tmp_path / "files")
    assert done.code == 1 and "holds other files" in done.err
