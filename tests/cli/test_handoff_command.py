"""`hmc-onnx handoff`, and `verify --against` what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli


@pytest.mark.parametrize("to", ["triton", "onnxruntime"])
def test_what_is_handed_over_is_verified(to: str, cli: Cli, given: Path, tmp_path: Path) -> None:
    written = cli("handoff", given / "model.onnx", "--to", to, "-o", tmp_path / "out", "--batch", 4, "--threads", 1)
    assert written.code == 0 and written.out.endswith(f"Written: {tmp_path / 'out'}\n")
    report = tmp_path / "report.json"
    common = ("--data", given / "plain.npz", "--provider", "cpu", "--report", report)
    assert cli("verify", given / "model.onnx", "--against", tmp_path / "out", *common).code == 0
    said = json.loads(report.read_text())
    assert (said["kl"], said["difference"], said["threads"]) == (0, 0, 1)
    assert [t["batch"] for t in said["timings"]] == [1, 4]
    assert cli("verify", given / "other.onnx", "--against", tmp_path / "out", *common).code == 0
    assert json.loads(report.read_text())["kl"] > 0


def test_a_batch_that_there_are_too_few_images_for_is_said(cli: Cli, given: Path, tmp_path: Path) -> None:
    model, out = given / "model.onnx", tmp_path / "out"
    assert cli("handoff", model, "--to", "onnxruntime", "-o", out, "--batch", 5000).code == 0
    outcome = cli("verify", model, "--against", out, "--data", given / "plain.npz", "--provider", "cpu")
    assert outcome.code == 0 and "latency, batch 1 " in outcome.words
    assert "the folder is for 5,000 images at once, and there are 40 images here" in outcome.err


def test_verify_wants_one_of_a_file_and_a_folder(cli: Cli, given: Path, tmp_path: Path) -> None:
    model = given / "model.onnx"
    for more in ((), (model, "--against", tmp_path)):
        outcome = cli("verify", model, *more, "--data", given / "plain.npz")
        assert outcome.code == 1
        assert outcome.errors == [
            "error: give either the compressed model's file or, with --against, the folder of a handoff"
        ]


def test_options_may_come_from_a_file_and_mistakes_are_one_sentence(cli: Cli, given: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("batch: 4\nname: net\nprovider: cpu\ntarget: macs=0.5\n")
    common = ("handoff", given / "model.onnx", "--to", "triton", "-o", tmp_path / "out", "--config")
    assert cli(*common, tmp_path / "run.yaml").code == 0
    assert "max_batch_size: 4\n" in (tmp_path / "out" / "net" / "config.pbtxt").read_text()
    again = cli(*common, tmp_path / "run.yaml")
    assert (again.code, len(again.errors)) == (1, 1) and "is no empty folder" in again.err
    wrong = cli("handoff", given / "model.onnx", "--to", "tensorrt", "-o", tmp_path / "rt", "--provider", "cpu")
    assert wrong.errors == ["error: --provider cpu: what is handed over to TensorRT runs on it: leave --provider out"]
