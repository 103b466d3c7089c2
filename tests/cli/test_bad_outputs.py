"""Outputs that cannot be written, or would replace an input: one sentence, and nothing is written.

Where a test stands for a machine that refuses to write, it does so for root too, whom no permissions stop: /proc is
a folder in which nobody can make files, and a limit on the size of files (RLIMIT_FSIZE) fails at the write, as a full
disk does.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from conftest import Cli, Refuses

pytestmark = pytest.mark.usefixtures("few_iterations")


@contextmanager
def unwritable(here: Path, given: Path, what: str) -> Iterator[tuple[Path, str]]:
    """An output that cannot be, and what is said of it."""
    model = given / "model.onnx"
    if what == "a folder":
        (here / "folder").mkdir()
        yield Path("folder"), "'folder' is a folder: give a file name"
    elif what == "nothing":
        yield Path(""), "is a folder: give a file name"
    elif what == "in a missing folder":
        yield Path("missing/out"), "folder 'missing' does not exist: make it first"
    elif what == "in a file":
        yield given / "plain.npz" / "out", "plain.npz' is not a folder: give another path"
    elif what == "in a file's folder":
        yield given / "plain.npz" / "folder" / "out", "does not exist: make it first"
    elif what == "in a folder of the system":
        yield Path("/proc/out"), "the output '/proc/out' cannot be written"
    elif what == "the model":
        yield model, "is an input too, or another output: give another name"
    elif what == "the model by another path":
        yield given / "flat" / ".." / "model.onnx", "is an input too, or another output: give another name"
    elif what == "a link to the model":
        (here / "link").symlink_to(model)
        yield Path("link"), "'link' is an input too, or another output: give another name"
    elif what == "the model by another name":
        (here / "hard").hardlink_to(model)
        yield Path("hard"), "'hard' is an input too, or another output: give another name"
        (here / "hard").unlink()
    elif what == "a pipe":  # stands for devices such as /dev/null, which a file must not replace
        os.mkfifo(here / "pipe")
        yield Path("pipe"), "'pipe' is not a regular file: give another name"
    else:
        yield Path("n" * 300), "too long"


UNWRITABLE = (
    "a folder",
    "nothing",
    "in a missing folder",
    "in a file",
    "in a file's folder",
    pytest.param(
        "in a folder of the system", marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
    ),
    "the model",
    "the model by another path",
    "a link to the model",
    "the model by another name",
    "a pipe",
    "of too long a name",
)


@pytest.mark.parametrize("what", UNWRITABLE)
@pytest.mark.parametrize("command", ["compress", "compress --report", "profile", "plan", "apply", "verify --report"])
def test_outputs_that_cannot_be(
    cli: Cli, refuses: Refuses, given: Path, steps: Path, here: Path, command: str, what: str
) -> None:
    model, data = given / "model.onnx", ["--data", given / "splits.npz"]
    with unwritable(here, given, what) as (out, says):
        arguments = {
            "compress": ["compress", model, *data, "--target", "macs=0.6", "-o", out],
            "compress --report": ["compress", model, *data, "--target", "macs=0.6", "-o", "out.onnx", "--report", out],
            "profile": ["profile", model, *data, "-o", out],
            "plan": ["plan", model if "model" in what else steps / "profile.json", "--target", "macs=0.6", "-o", out],
            "apply": ["apply", model, *data, "--plan", steps / "plan.json", "-o", out],
            "verify --report": ["verify", model, model, *data, "--report", out],
        }[command]
        refuses(*arguments, says=says)
        assert "steps" not in cli(*arguments).err  # known before any work


def test_outputs_that_are_other_inputs(
    compress: Refuses, refuses: Refuses, given: Path, steps: Path, here: Path
) -> None:
    says = "is an input too, or another output: give another name"
    (here / "settings.yaml").write_text("samples: 32\n")
    (here / "data.yaml").write_text(f"data: {given / 'splits.npz'}\n")
    model = given / "model.onnx"
    for option in ("--report", "-o"):
        compress(option, given / "splits.npz", says=says)
        compress(option, given / "plain.npz", test_data=None, says=says, **{"test-data": given / "plain.npz"})
        compress(option, "settings.yaml", config="settings.yaml", says=says)
        compress(option, given / "splits.npz", config="data.yaml", data=None, says=says)
    compress("--report", "out.onnx", says=says)
    compress("--report", "./out.onnx", says=says)
    refuses("apply", model, "--plan", steps / "plan.json", "-o", steps / "plan.json", "--data", "x", says=says)
    refuses("plan", steps / "profile.json", "-o", steps / "profile.json", "--target", "macs=0.6", says=says)
    refuses("verify", model, given / "other.onnx", "--data", "x", "--report", given / "other.onnx", says=says)


def test_weights_beside_an_input_are_an_input(refuses: Refuses, given: Path, here: Path) -> None:
    says = "is an input too, or another output: give another name"
    proto = onnx.load(given / "model.onnx")
    onnx.save(proto, "model.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=64)
    data, target = ["--data", given / "splits.npz"], ["--target", "macs=0.6"]
    for output in ("out.onnx.data", "out.onnx"):  # the latter, if large, has its weights in the former
        refuses("compress", "model.onnx", *data, *target, "-o", output, says=says)
        refuses("profile", "model.onnx", *data, "-o", output, says=says)
    refuses("verify", given / "model.onnx", "model.onnx", *data, "--report", "out.onnx.data", says=says)
    (here / "table.json").write_text("{}")
    table = ["--latency-table", "table.json"]
    refuses("profile", given / "model.onnx", *data, *table, "-o", "table.json", says=says)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As if the disk were full beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("before", [None, b"what was here before"])
def test_a_full_disk(compress: Refuses, refuses: Refuses, steps: Path, here: Path, before: bytes | None) -> None:
    for name in ("out.onnx", "plan.json"):
        if before is not None:
            (here / name).write_bytes(before)
    with no_file_larger_than(1024):
        compress(says=("cannot write 'out.onnx'", "File too large"))
        arguments = ["plan", steps / "profile.json", "-o", "plan.json", "--target", "macs=0.6"]
        refuses(*arguments, says=("cannot write 'plan.json'", "File too large"))


def test_a_full_standard_output(given: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = [sys.executable, "-m", "hmc_onnx", "inspect", given / "model.onnx"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: No space left on device: check the disk and permissions"]
