"""The commands on what they are meant for: what they write, print, and leave the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Cli
from zoo import Builder, images, parsed, run

from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import Profile
from hmc_onnx.records.report import RunReport
from passes.graph.files import save

pytestmark = pytest.mark.usefixtures("few_iterations", "coarse_candidates")

COMMANDS = ("compress", "inspect", "profile", "plan", "apply", "verify", "report", "finetune")
STRATEGIES = ("hmc", "nahc", "ahc", "prune", "lowrank")


@pytest.fixture
def compressed(cli: Cli, given: Path, tmp_path: Path) -> Path:
    """model.onnx at 0.6 of its MACs."""
    out = tmp_path / "compressed.onnx"
    assert cli("compress", given / "model.onnx", "-o", out, "--data", given / "splits.npz", *TARGET).code == 0
    return out


TARGET = ("--target", "macs=0.6")


def test_compress_writes_a_model_and_a_report_and_says_what_it_did(cli: Cli, given: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = cli("compress", given / "model.onnx", "-o", out, "--data", given / "splits.npz", *TARGET, "--report", report)
    assert done.code == 0
    assert done.errors == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "report.json"]

    proto, original = onnx.load(out), onnx.load(given / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert list(proto.graph.input) == list(original.graph.input)
    assert list(proto.graph.output) == list(original.graph.output)
    x = images(40, 8)
    before, after = run(original, x)[0], run(proto, x)[0]

    found = RunReport.load(report)
    times = [layer.milliseconds for layer in found.layers if layer.milliseconds]  # of a plan by MACs, too
    assert len(times) > len(found.layers) // 2  # some, of a few runs of microseconds each, may drown in noise
    assert all(sum(own) > 0 for own in zip(*times, strict=True))  # that of one tiny layer may be below a microsecond
    assert found.plan is not None and [layer.name for layer in found.layers] == list(found.plan.layers)
    assert any(layer.curves for layer in found.layers)
    assert 0 < found.b.macs <= 0.6 * found.a.macs
    assert found.b.bytes == out.stat().st_size < found.a.bytes == (given / "model.onnx").stat().st_size
    assert found.images == 40
    assert "splits.npz" in found.source
    assert found.a.top1 is not None
    assert found.b.top1 is not None
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.5  # the same network still
    assert found.agreement > 0.5

    for node in original.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert node.name in done.out
    assert "strategy hmc, target macs=0.6" in done.words
    assert f"top-1 {found.a.top1:.2%} {found.b.top1:.2%}" in done.words
    assert "latency, batch 1" in done.words
    assert done.out.rstrip().endswith(f"Written: {out}")
    assert "sensitivity: " in done.err


def test_in_steps_is_as_in_one_go(cli: Cli, given: Path, tmp_path: Path, compressed: Path) -> None:
    model, data = given / "model.onnx", ["--data", given / "splits.npz"]
    profile, plan, out = tmp_path / "profile.json", tmp_path / "plan.json", tmp_path / "steps.onnx"
    done = cli("profile", model, "-o", profile, *data)
    assert done.code == 0
    assert "6 layers" in done.out
    assert f"Written: {profile}" in done.out
    assert len(Profile.load(profile).layers) == 6

    done = cli("plan", profile, "-o", plan, *TARGET)
    assert done.code == 0
    assert "Layers (strategy hmc, target macs=0.6)" in done.words
    decided = Plan.load(plan)
    assert decided.macs <= 0.6 * Profile.load(profile).macs
    assert {layer.bears for layer in decided.layers.values()} <= {"lowrank", "prune", "both", "keep"}

    done = cli("apply", model, "--plan", plan, "-o", out, *data)
    assert done.code == 0
    assert f"Written: {out}" in done.out
    assert out.read_bytes() == compressed.read_bytes()


def test_a_plan_may_be_edited(cli: Cli, given: Path, tmp_path: Path) -> None:
    model, data = given / "model.onnx", ["--data", given / "splits.npz"]
    profile, plan, out = tmp_path / "profile.json", tmp_path / "plan.json", tmp_path / "out.onnx"
    assert cli("profile", model, "-o", profile, *data).code == 0
    assert cli("plan", profile, "-o", plan, "--strategy", "lowrank", *TARGET).code == 0
    edited = json.loads(plan.read_text())
    decomposed = [name for name, layer in edited["layers"].items() if layer["method"] != "keep"]
    assert len(decomposed) > 1
    edited["layers"][decomposed[0]] |= {"method": "keep", "rank": 0}
    plan.write_text(json.dumps(edited))
    assert cli("apply", model, "--plan", plan, "-o", out, *data).code == 0
    names = {node.name for node in onnx.load(out).graph.node}
    assert decomposed[0] in names
    assert not names & set(decomposed[1:])


def test_every_strategy_keeps_to_the_target(cli: Cli, given: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    assert cli("profile", given / "model.onnx", "-o", profile, "--data", given / "plain.npz", "--align", 1).code == 0
    whole, sensitivity = Profile.load(profile), {}
    for strategy in STRATEGIES:
        for target, macs, parameters in (
            ("macs=0.9", 0.9, 1),
            ("params=0.9", 1, 0.9),
            ("macs=0.9,params=0.9", 0.9, 0.9),
        ):
            out = tmp_path / f"{strategy}.json"
            done = cli("plan", profile, "-o", out, "--target", target, "--strategy", strategy)
            assert done.code == 0
            assert f"strategy {strategy}, target {target}" in done.words
            plan = Plan.load(out)
            assert plan.macs <= macs * whole.macs
            assert plan.parameters <= parameters * whole.parameters
            sensitivity[strategy, target] = plan.sensitivity
            assert plan.sensitivity >= sensitivity["hmc", target] * (1 - 1e-3)  # the others have fewer choices


def test_the_least_that_is_said_to_be_possible_is_possible(cli: Cli, given: Path, tmp_path: Path) -> None:
    profile, plan = tmp_path / "profile.json", tmp_path / "plan.json"
    assert cli("profile", given / "model.onnx", "-o", profile, "--data", given / "plain.npz").code == 0
    for strategy in STRATEGIES:
        for what in ("macs", "params"):
            refused = cli("plan", profile, "-o", plan, "--target", f"{what}=0.001", "--strategy", strategy)
            assert refused.code == 1
            (least,) = re.findall(rf"on this model, ({what}=[0-9.]+): keep more", refused.errors[0])
            assert cli("plan", profile, "-o", plan, "--target", least, "--strategy", strategy).code == 0


def test_twice_is_the_same(cli: Cli, given: Path, tmp_path: Path) -> None:
    """Workers change nothing either: see test_resuming."""
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    second.write_bytes(b"what was here before")
    call = ["compress", given / "model.onnx", "--data", given / "plain.npz", "--quick", "--target", "macs=0.8"]
    for out in (first, second):
        assert cli(*call, "-o", out).code == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_settings_file_is_as_good_as_options_and_options_go_before_it(cli: Cli, given: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        "\n".join(
            [
                "# every option may stand here",
                f"data: {given / 'labelled.npz'}",
                "test-data: " + str(given / "splits.npz"),
                "preset: cifar10",
                "mean: [0.5, 0.5, 0.5]",
                "std: [0.25, 0.25, 0.25]",
                "size: [8, 8]",
                "layout: NCHW",
                "target: params=0.7",
                "strategy: lowrank",
                "samples: 32",
                "seed: 3",
                "align: 2",
                "provider: cpu",
                "labels: false",
            ]
        )
    )
    a, b, c = (tmp_path / f"{name}.onnx" for name in "abc")
    model = given / "model.onnx"
    from_file = cli("compress", model, "-o", a, "--config", config)
    assert from_file.code == 0
    assert "strategy lowrank, target params=0.7" in from_file.words
    assert "top-1" not in from_file.out
    preprocessing = ["--preset", "cifar10", "--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25, "--size", 8, 8]
    settings = ["--samples", 32, "--seed", 3, "--align", 2, "--provider", "cpu", "--layout", "NCHW"]
    what = ["--target", "params=0.7", "--strategy", "lowrank", "--no-labels"]
    data = ["--data", given / "labelled.npz", "--test-data", given / "splits.npz"]
    from_options = cli("compress", model, "-o", b, *data, *preprocessing, *settings, *what)
    assert from_options.code == 0
    assert a.read_bytes() == b.read_bytes()
    both = cli("compress", model, "-o", c, "--config", config, "--target", "macs=0.9", "--labels", "--seed", 4)
    assert both.code == 0
    assert "strategy lowrank, target macs=0.9" in both.words
    assert "top-1" in both.out
    assert c.read_bytes() != a.read_bytes()


@pytest.mark.usefixtures("all_is_large")
def test_what_a_large_model_leaves_on_disk_goes_with_the_command(
    cli: Cli, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    small = ("--data", given / "labelled.npz", "--samples", 32)
    quick = ("--quick", *small)
    assert cli("compress", given / "model.onnx", "-o", tmp_path / "m.onnx", *TARGET, *quick).code == 0
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx", load_external_data=False), full_check=True)
    assert cli("verify", given / "model.onnx", tmp_path / "m.onnx", *small).code == 0
    assert cli("profile", given / "model.onnx", "-o", tmp_path / "p.json", *quick).code == 0
    assert cli("compress", given / "model.onnx", "-o", tmp_path / "m.onnx", "--target", "macs=0.001", *quick).code == 1
    assert list((tmp_path / "temporary").iterdir()) == []
    training = ("--finetune", "--epochs", 0.1)
    arguments = ("compress", given / "model.onnx", "-o", tmp_path / "t.onnx", *TARGET, *quick, *training)
    assert cli(*arguments).code == 0
    assert list((tmp_path / "temporary").glob("hmc_onnx-*")) == []  # torch leaves folders of its own


def test_inspect_says_of_each_layer_what_can_be_done(cli: Cli, given: Path) -> None:
    done = cli("inspect", given / "model.onnx")
    assert done.code == 0
    assert done.errors == []
    for node in onnx.load(given / "model.onnx").graph.node:
        if node.op_type in ("Conv", "Gemm"):
            row = next(line for line in done.out.splitlines() if f"│ {node.name} " in line)
            assert "decompose (" in row
    assert "Channel groups: what is pruned together" in done.words
    assert "no: it is the model's output 'logits'" in done.words
    assert re.search(r"In all: [1-9][\d,]* MACs an image, [1-9][\d,]* parameters", done.words)


def test_inspect_says_why_not(cli: Cli, tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, at="/first"))
    x = b.conv(x, 8, 8, group=8, at="/depthwise")
    x = b.node("ConvTranspose", x, b.const(b.normal(8, 1, 2, 2)), at="/up", group=8)
    save(b.model(b.gemm(b.mean(x), 8, 5)), tmp_path / "model.onnx")
    done = cli("inspect", tmp_path / "model.onnx")
    assert done.code == 0
    rows = {
        name: next(r for r in done.out.splitlines() if f"│ {name} " in r)
        for name in ("/first/Conv", "/up/ConvTranspose")
    }
    assert "decompose (" in rows["/first/Conv"]
    assert "nothing: it is a grouped ConvTranspose" in done.words
    assert "nothing: it is a grouped Conv" in done.words


def test_inspect_takes_the_size_that_a_model_leaves_open(cli: Cli, given: Path, tmp_path: Path) -> None:
    proto = onnx.load(given / "model.onnx")
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    save(proto, tmp_path / "open.onnx")
    refused = cli("inspect", tmp_path / "open.onnx")
    assert refused.code == 1
    assert "give --size HEIGHT WIDTH" in refused.errors[0]
    closed = cli("inspect", tmp_path / "open.onnx", "--size", 8, 8)
    assert closed.out.splitlines()[-3] == cli("inspect", given / "model.onnx").out.splitlines()[-3]
    larger = cli("inspect", tmp_path / "open.onnx", "--size", 16, 16)
    assert larger.out.splitlines()[-3] != closed.out.splitlines()[-3]


def test_inspect_takes_models_with_nothing_to_do(cli: Cli, tmp_path: Path) -> None:
    relu = parsed(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] input) => (float[N,3,8,8] y) { y = Relu(input) }'
    )
    save(relu, tmp_path / "relu.onnx")
    done = cli("inspect", tmp_path / "relu.onnx")
    assert done.code == 0
    assert "In all: 0 MACs an image, 0 parameters" in done.words


def test_verify_compares_two_models(cli: Cli, given: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    model = given / "model.onnx"
    same = cli("verify", model, model, "--data", given / "splits.npz", "--report", report)
    assert same.code == 0
    assert same.errors == []
    assert "Before and after, on 40 images" in same.words
    assert "top-1" in same.words
    assert "same class chosen 100.00%" in same.words
    assert "KL divergence 0.0000 nats" in same.words
    assert RunReport.load(report).difference == 0
    other = cli("verify", model, given / "other.onnx", "--data", given / "splits.npz")
    assert other.code == 0
    assert "100.00%" not in other.words


def test_verify_shows_what_the_quantiser_alone_gives(cli: Cli, given: Path, tmp_path: Path) -> None:
    model, data, alone = given / "model.onnx", ["--data", given / "splits.npz"], tmp_path / "alone.onnx"
    int8 = ["--precision", "int8", "--provider", "cpu", "--threads", 1]
    assert cli("compress", model, "-o", alone, *data, "--target", "none", *int8).code == 0
    done = cli("verify", model, alone, *data, *int8, "--report", tmp_path / "run.html")
    assert done.code == 0
    assert "before int8 alone after" in done.words
    assert "The quantiser alone" in (tmp_path / "run.html").read_text()
    done = cli("verify", alone, model, *data, *int8)
    assert (done.code, len(done.errors)) == (1, 1) and "the model is quantised" in done.errors[0]


def test_a_report_becomes_a_page_by_its_name_or_later(cli: Cli, given: Path, tmp_path: Path) -> None:
    model, other = given / "model.onnx", given / "other.onnx"
    for name in ("run.json", "run.html"):
        assert cli("verify", model, other, "--data", given / "splits.npz", "--report", tmp_path / name).code == 0
    later = cli("report", tmp_path / "run.json", "-o", tmp_path / "later.html")
    assert (later.code, later.errors) == (0, [])
    assert f"Written: {tmp_path / 'later.html'}" in later.words
    for name in ("run.html", "later.html"):
        assert "<h1>other.onnx</h1>" in (tmp_path / name).read_text()
    command = f"verify {model} {other} --data {given / 'splits.npz'} --report {tmp_path / 'run.json'}"
    assert f"hmc-onnx {command}" in (tmp_path / "later.html").read_text()


def test_a_report_that_cannot_be_read_is_refused(cli: Cli, given: Path, tmp_path: Path) -> None:
    done = cli("report", given / "plain.npz", "-o", tmp_path / "page.html")
    assert done.code == 1
    assert len(done.errors) == 1
    assert "is not a report of a run (what `--report RUN.json` writes), as it is no text" in done.errors[0]
    (tmp_path / "run.json").write_text("no")
    for name, page, says in (
        ("run.json", "page.html", "is no JSON: give another file"),
        ("page.html", "other.html", "is a page already: give the JSON that"),
        ("run.json", "model.onnx", "would be HTML: give --output a name that ends in .html"),
        ("gone.json", "page.html", "does not exist: give a file that is there"),
    ):
        done = cli("report", tmp_path / name, "-o", tmp_path / page)
        assert (done.code, len(done.errors)) == (1, 1) and says in done.errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_verify_takes_as_many_images_as_it_is_told(cli: Cli, given: Path) -> None:
    for data in ("splits.npz", "plain.npz"):
        done = cli("verify", *[given / "model.onnx"] * 2, "--data", given / data, "--samples", 16)
        assert done.code == 0
        assert "on 16 images (16 of 40 images of" in done.words


@pytest.mark.parametrize("data", ["classes", "labelled.npz"])
def test_labels_are_reported_unless_they_are_not_wanted(cli: Cli, given: Path, tmp_path: Path, data: str) -> None:
    models = [given / "model.onnx"] * 2
    with_labels = cli("verify", *models, "--data", given / data)
    assert with_labels.code == 0
    assert "top-1" in with_labels.out
    without = cli("verify", *models, "--data", given / data, "--no-labels")
    assert without.code == 0
    assert "top-1" not in without.out
    config = tmp_path / "settings.yaml"
    config.write_text("labels: false\n")
    assert "top-1" not in cli("verify", *models, "--data", given / data, "--config", config).out
    assert "top-1" in cli("verify", *models, "--data", given / data, "--config", config, "--labels").out


def test_compress_reports_accuracy_on_class_folders(cli: Cli, given: Path, tmp_path: Path) -> None:
    # the plan's digest, which is in the metadata, is of the data with the labels
    arguments = ["compress", given / "model.onnx", "-o", tmp_path / "out.onnx", "--no-metadata", *TARGET]
    arguments += ["--data", given / "classes"]
    with_labels = cli(*arguments)
    assert with_labels.code == 0
    assert "top-1" in with_labels.out
    assert "on 36 images" in with_labels.words
    model = (tmp_path / "out.onnx").read_bytes()
    without = cli(*arguments, "--no-labels")
    assert without.code == 0
    assert "top-1" not in without.out
    assert (tmp_path / "out.onnx").read_bytes() == model  # labels are used for nothing else


def test_no_labels_and_nothing_to_compare_on_is_fine(cli: Cli, given: Path, tmp_path: Path) -> None:
    for data in ("flat", "floats.npz"):
        done = cli("compress", given / "model.onnx", "-o", tmp_path / "out.onnx", "--data", given / data, *TARGET)
        assert done.code == 0
        assert "top-1" not in done.out


def test_models_of_fixed_batch_size_are_taken(cli: Cli, given: Path, tmp_path: Path) -> None:
    proto = onnx.load(given / "model.onnx")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    save(proto, tmp_path / "one.onnx")
    out = tmp_path / "out.onnx"
    assert cli("compress", tmp_path / "one.onnx", "-o", out, "--data", given / "splits.npz", *TARGET).code == 0
    assert run(onnx.load(out), images(1, 8))[0].shape == (1, 5)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_of_every_option(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert done.err == ""
    assert f"hmc-onnx {command}" in done.out
    wanted = {
        "compress": ["--data", "--target", "--report", "--no-labels", "--config"],
        "plan": ["PROFILE", "--target"],
    }
    for option in [*wanted.get(command, []), *([] if command in ("inspect", "verify") else ["--output"])]:
        assert option in done.out


def test_help_and_no_arguments_list_the_commands(cli: Cli) -> None:
    for arguments in (["--help"], []):
        done = cli(*arguments)
        assert all(command in done.out for command in COMMANDS)
        assert "Traceback" not in done.err


def test_help_imports_nothing_heavy() -> None:
    given = [sys.executable, "-X", "importtime", "-m", "hmc_onnx", "--help"]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    heavy = {"numpy", "scipy", "onnx", "onnxruntime", "onnx_graphsurgeon", "onnxscript", "onnx_ir", "torch"}
    assert not imported & (heavy | {"PIL", "matplotlib", "jinja2", "joblib", "tensorly", "pydantic", "yaml"})


def test_a_terminal_without_unicode_is_served(given: Path) -> None:
    command = [sys.executable, "-m", "hmc_onnx", "inspect", given / "model.onnx"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "/conv1/Conv" in done.stdout


def test_data_need_not_be_of_the_model_type(cli: Cli, given: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "double.npz", input=images(40, 8).astype(np.float64))
    done = cli("verify", *[given / "model.onnx"] * 2, "--data", tmp_path / "double.npz")
    assert done.code == 0
    assert done.errors == []


def test_times_are_kept_shown_and_cleared(
    cli: Cli, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    empty = "No table is in the cache yet"
    assert empty in cli("latency", "show").out
    out = tmp_path / "out.onnx"
    done = cli("compress", given / "model.onnx", "-o", out, "--data", given / "splits.npz", "--target", "latency=0.01")
    assert done.code == 1 and not out.exists()
    assert "target latency=0.01 is below" in done.err and "'hmc-onnx latency clear'" in done.err
    (table,) = (tmp_path / "cache").rglob("*.json")
    assert str(table) in cli("latency", "show").out
    assert f"Removed: {table}" in cli("latency", "clear").out
    assert not table.exists() and empty in cli("latency", "show").out

    taken = tmp_path / "table.json"
    assert f"Written: {taken}" in cli("latency", "measure", given / "model.onnx", "-o", taken).out
    assert str(taken) in cli("latency", "show", taken).out


def test_a_comparison_says_what_looks_wrong_with_its_images(cli: Cli, given: Path, tmp_path: Path) -> None:
    with np.load(given / "labelled.npz") as stored:
        np.savez(tmp_path / "one.npz", images=stored["images"], labels=np.zeros(40, int))
    done = cli("verify", *[given / "model.onnx"] * 2, "--data", tmp_path / "one.npz")
    assert done.code == 0
    assert "are all class 0: give images of all the classes" in done.err
