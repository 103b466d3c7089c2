"""A user's own calib.py or passes.py, which Python finds before ours, is said in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = str(Path(__file__).parents[2])


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python run in a folder whose modules go before ours."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), HOME])}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


def stranger(folder: Path, kind: str) -> tuple[str, Path]:
    if kind == "package":
        (folder / "calib").mkdir()
        place = folder / "calib" / "__init__.py"
    else:
        place = folder / kind
    place.write_text("answer = 42\n")
    return ("passes" if kind == "passes.py" else "calib"), place


@pytest.mark.parametrize("kind", ["calib.py", "passes.py", "package"])
@pytest.mark.parametrize("code", ["import hmc_onnx; hmc_onnx.compress", "from hmc_onnx import finetune"])
def test_a_script_ends_in_a_sentence_that_names_the_file(tmp_path: Path, kind: str, code: str) -> None:
    name, place = stranger(tmp_path, kind)
    found = run(tmp_path, "-c", code)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == (
        f"ImportError: hmc_onnx cannot import its package '{name}', as '{place}' has the same name: "
        "rename that file or folder, or run from another folder"
    )


@pytest.mark.parametrize("kind", ["calib.py", "passes.py"])
def test_the_command_line_says_only_that(tmp_path: Path, kind: str) -> None:
    name, place = stranger(tmp_path, kind)
    found = run(tmp_path, "-m", "hmc_onnx", "latency", "show")
    assert found.returncode == 1 and found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: hmc_onnx cannot import its package '{name}', as '{place}' has the same name: ")


def test_a_module_that_was_imported_before_is_seen_too(tmp_path: Path) -> None:
    code = "import sys, types; sys.modules['calib'] = types.ModuleType('calib'); import hmc_onnx; hmc_onnx.compress"
    found = run(tmp_path, "-c", code)
    assert found.stderr.splitlines()[-1].startswith("ImportError: hmc_onnx cannot find its package 'calib' in ")


def test_ours_are_ours_wherever_python_is_started(tmp_path: Path) -> None:
    (tmp_path / "calib").mkdir()  # a folder of data that is no package
    found = run(tmp_path, "-c", "import hmc_onnx; print(hmc_onnx.Settings, hmc_onnx.__version__)")
    assert found.returncode == 0, found.stderr
