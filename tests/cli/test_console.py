"""What is printed where no person looks on: progress in a log, results for scripts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import onnx
import pytest
from conftest import Cli

from hmc_onnx.cli.console import progress_lines, show_json
from hmc_onnx.records.comparison import Verification
from hmc_onnx.records.plan import Plan

pytestmark = pytest.mark.usefixtures("few_iterations")


def test_progress_in_a_log_is_a_line_every_ten_seconds_a_stage() -> None:
    lines: list[str] = []
    now = 0.0
    say = progress_lines(lines.append, lambda: now)
    for second in range(0, 31):
        now = float(second)
        say("sensitivity", 2 * second, 1000)
    say("repair", 0, 5)
    assert lines == [
        "sensitivity: 1000 steps",
        "sensitivity: 20 of 1000 (2%), about 8 min left",
        "sensitivity: 40 of 1000 (4%), about 8 min left",
        "sensitivity: 60 of 1000 (6%), about 8 min left",
        "repair: 5 steps",
    ]


def test_what_an_earlier_run_has_done_does_not_shorten_the_time_that_is_left() -> None:
    lines: list[str] = []
    now = 0.0
    say = progress_lines(lines.append, lambda: now)
    say("plan", 50, 100)
    now = 10.0
    say("plan", 60, 100)
    assert lines[-1] == "plan: 60 of 100 (60%), about 40 s left"


def test_the_time_that_is_left_is_that_of_the_stage() -> None:
    lines: list[str] = []
    now = 0.0
    say = progress_lines(lines.append, lambda: now)
    for second, done in ((0.0, 0), (5.0, 10), (100.0, 0), (110.0, 20)):
        now = second
        say("latency", done, 40)
    assert lines == ["latency: 40 steps", "latency: 20 of 40 (50%), about 10 s left"]


def test_inspect_describes_the_model_in_json(cli: Cli, given: Path) -> None:
    done = cli("inspect", given / "model.onnx", "--json")
    found = json.loads(done.out)
    names = [n.name for n in onnx.load(given / "model.onnx").graph.node if n.op_type in ("Conv", "Gemm")]
    assert [layer["name"] for layer in found["layers"]] == names
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert {g["name"] for g in found["groups"] if g["declined"] is None} <= set(names)
    assert (done.code, done.errors) == (0, [])


def test_results_are_one_json_document_on_standard_output(cli: Cli, given: Path, tmp_path: Path) -> None:
    model, out, data = given / "model.onnx", tmp_path / "out.onnx", ["--data", given / "splits.npz"]
    profile, plan = tmp_path / "profile.json", tmp_path / "plan.json"
    made = json.loads(cli("compress", model, "-o", out, *data, "--target", "macs=0.6", "--json").out)
    assert Plan.model_validate(made["plan"]).macs == Verification.model_validate(made["comparison"]).b.macs
    assert made["written"] == str(out)
    profiled = json.loads(cli("profile", model, "-o", profile, *data, "--json").out)
    assert (profiled["layers"], profiled["written"]) == (len(made["plan"]["layers"]), str(profile))
    planned = json.loads(cli("plan", profile, "-o", plan, "--target", "macs=0.6", "--json").out)
    assert Plan.model_validate(planned) == Plan.load(plan)
    verified = Verification.model_validate(json.loads(cli("verify", model, out, *data, "--json").out))
    assert verified.b.macs == made["plan"]["macs"]


@pytest.mark.parametrize(
    "command", [("compress", "--target", "macs=0.6"), ("profile",), ("compress", "--target", "none")]
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    cli: Cli, given: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    arguments = [given / "model.onnx", "-o", out, "--data", given / "splits.npz", "--dry-run", *command[1:]]
    done = cli(command[0], *arguments)
    assert (done.code, done.errors) == (0, [])
    assert "To do: about 1 minute" in done.words
    assert "it is the model's output" in done.words
    assert list(tmp_path.iterdir()) == []
    assert json.loads(cli(command[0], *arguments, "--json").out)["layers"] == 6


def test_what_json_has_no_word_for_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": [1.5, math.inf, {"b": math.nan}], "c": True, "d": "x"})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None, {"b": None}], "c": True, "d": "x"}
