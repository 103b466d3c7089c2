"""`finetune` and `compress --finetune`: what they write and print, and bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from conftest import Cli

from hmc_onnx.records.report import RunReport

SHORT = ("--epochs", "1", "--device", "cpu", "--train-in", "fp32")


def test_finetune_writes_a_model_and_says_how_it_went(cli: Cli, given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = cli(
        "finetune", given / "other.onnx", "--teacher", given / "model.onnx", "-o", out,
        "--data", given / "splits.npz", *SHORT,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Fine-tuning" in done.out and "held back" in done.out and f"Written: {out}" in done.words
    before, after = onnx.load(given / "other.onnx"), onnx.load(out)
    assert after.graph.node == before.graph.node
    verified = cli("verify", given / "model.onnx", out, "--data", given / "splits.npz")
    assert verified.code == 0


def test_compress_and_finetune_in_one(cli: Cli, given: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = cli(
        "compress", given / "model.onnx", "-o", out, "--data", given / "splits.npz", "--target", "macs=0.6",
        "--finetune", *SHORT, "--report", report, "--work-dir", tmp_path / "work",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Fine-tuning" in done.out and "Before and after" in done.out
    found = RunReport.load(report)
    assert found.b.macs > 0 and [e.epoch for e in found.epochs][:2] == [0, 1] and found.epochs[0].loss is None
    again = tmp_path / "again.onnx"
    resumed = cli(
        "compress", given / "model.onnx", "-o", again, "--data", given / "splits.npz", "--target", "macs=0.6",
        "--finetune", *SHORT, "--work-dir", tmp_path / "work",
    )  # fmt: skip
    assert resumed.code == 0, resumed.err
    assert again.read_bytes() == out.read_bytes()
    assert resumed.err.count("images to train on") == 1  # said before the work, and not again when training begins


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--epochs", "1", "--minutes", "1"), "--epochs and --minutes were both given"),
        (("--epochs", "0"), "--epochs 0"),
        (("--epochs", "inf"), "--epochs inf"),
        (("--batch-size", "1"), "--batch-size 1"),
        (("--teacher", "seven.onnx"), "differs in type or shape"),
        (("--teacher", "none.onnx"), "no model file"),
        (("--data", "none.npz"), "does not exist"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    cli: Cli, given: Path, tmp_path: Path, arguments: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    out = tmp_path / "out.onnx"
    options = {"--teacher": "model.onnx", "--data": "splits.npz"} | dict(
        zip(arguments[::2], arguments[1::2], strict=True)
    )
    done = cli("finetune", "other.onnx", "-o", out, *(part for pair in options.items() for part in pair))
    assert done.code == 1 and len(done.errors) == 1 and said in done.errors[0]
    assert not out.exists()


def test_without_torch_the_message_names_the_extra(
    cli: Cli, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = cli(
        "finetune", given / "other.onnx", "--teacher", given / "model.onnx", "-o", tmp_path / "out.onnx",
        "--data", given / "splits.npz",
    )  # fmt: skip
    assert done.code == 1 and "hmc-onnx[finetune]" in done.errors[0]
