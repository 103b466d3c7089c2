"""What is said where onnxruntime is missing, broken or there twice, is what to type."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from calib.runtime import installed
from calib.runtime.installed import import_onnxruntime
from passes.core.errors import HmcWarning, SettingsError


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Wheels that are installed, on a machine with x86-64 and Linux."""
    found: set[str] = set()
    monkeypatch.setattr(installed, "_is_installed", found.__contains__)
    monkeypatch.setattr(installed.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(installed.sys, "platform", "linux")
    return found


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"])
def test_one_wheel_is_well(wheels: set[str], name: str) -> None:
    wheels.add(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_onnxruntime() is sys.modules["onnxruntime"]


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-openvino"])
def test_two_wheels_are_warned_of(wheels: set[str], other: str) -> None:
    wheels.update({"onnxruntime", other})
    with pytest.warns(HmcWarning) as seen:
        import_onnxruntime()
    assert [str(w.message) for w in seen] == [
        f"onnxruntime and {other} are installed into the same folder, where each breaks the other: "
        f"type 'pip uninstall -y onnxruntime {other}' and then 'pip install {other}'"
    ]


@pytest.mark.parametrize(
    ("system", "processor", "wheel"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
    ],
)
def test_without_one_the_command_is_that_of_the_machine(
    wheels: set[str], monkeypatch: pytest.MonkeyPatch, system: str, processor: str, wheel: str
) -> None:
    monkeypatch.setattr(installed.sys, "platform", system)
    monkeypatch.setattr(installed.platform, "machine", lambda: processor)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it fails
    with pytest.raises(SettingsError, match=rf"\Aonnxruntime is not installed: type 'pip install {wheel}'\Z"):
        import_onnxruntime()


def test_what_an_uninstalled_wheel_has_left_is_said(wheels: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.add("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", type(sys)("onnxruntime"))  # an empty folder is a module, too
    expected = (
        r"\Athe installed onnxruntime cannot be imported \([^\n]+\): type 'pip uninstall -y onnxruntime' and [^\n]+\Z"
    )
    with pytest.raises(SettingsError, match=expected):
        import_onnxruntime()


WITHOUT = """
import sys
from hmc_onnx.cli import main
sys.modules["onnxruntime"] = None
sys.argv[1:] = ["inspect", sys.argv[1]]
main()
"""


def test_the_command_line_without_onnxruntime_ends_in_one_sentence(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(root / "examples" / "resnet20-cifar10.onnx")],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ") and "pip install onnxruntime" in line
