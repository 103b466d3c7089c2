"""Every command of docs/serving.md works, in its order, on files of the names that the page uses."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from graphs import resnet
from PIL import Image

from hmc_onnx.records.provenance import Provenance, with_provenance
from passes.graph.files import save

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ELSEWHERE = ("tritonserver", "sh")  # run a server, or TensorRT


def commands() -> list[list[str]]:
    """The commands in the page's fenced blocks."""
    blocks = PAGE.read_text().split("```")[1::2]
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line and not line.startswith(" ")]
    return [words for words in lines if not words[0].endswith("/")]  # a drawing of folders


def test_the_commands_of_the_page_work(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Provenance(
        version="1", original="a", target="none", precision="fp32", strategy="hmc", plan="b", provider="cpu"
    )
    model = resnet((1,), (2,), size=224)
    save(model, "resnet50.onnx")
    save(with_provenance(model, made), "faster.onnx")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (240, 260, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    done = []
    for name, *words in commands():
        if name == "hmc-onnx":
            outcome = cli(*words)
            assert outcome.code == 0, (words, outcome.err)
        elif name == "python":
            subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=60)
        else:
            assert name in ELSEWHERE
            if name == "sh":
                assert (tmp_path / words[0]).is_file()
        done.append(name)
    assert done.count("hmc-onnx") == 6 and done.count("python") == 1
