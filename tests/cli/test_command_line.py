"""The command line: what it writes, and one clear sentence for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import images, resnet
from PIL import Image

from hmc_onnx.cli import main
from passes.graph.files import save

FAST = ["--samples", "48", "--align", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data that fit it, and data and models that do not."""
    at = tmp_path_factory.mktemp("inputs")
    save(resnet(), at / "model.onnx")
    save(resnet(seed=1), at / "other.onnx")
    save(resnet(size=16), at / "larger.onnx")
    save(resnet(classes=7), at / "classes.onnx")
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (2, 64, 3, 8, 8), np.uint8)
    labels = rng.integers(0, 5, 64)
    np.savez(at / "data.npz", train_images=train, test_images=test, test_labels=labels)
    np.savez(at / "labels.npz", train_images=train, test_images=test, test_labels=labels + 100)
    np.savez(at / "integers.npz", images=train.astype(np.int32))
    np.savez(at / "nan.npz", input=np.full((8, 3, 8, 8), np.nan, np.float32))
    np.savez(at / "floats.npz", input=images(64))
    np.savez(at / "shape.npz", input=images(8, size=9))
    np.savez(at / "layout.npz", input=images(8).transpose(0, 2, 3, 1))
    (at / "empty").mkdir()
    (at / "broken").mkdir()
    (at / "broken" / "a.png").write_bytes(b"\x89PNG not really")
    for kind in ("cat", "dog"):
        (at / "classes" / kind).mkdir(parents=True)
        for i in range(24):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(at / "classes" / kind / f"{i}.png")
    (at / "truncated.onnx").write_bytes((at / "model.onnx").read_bytes()[:3000])
    (at / "text.onnx").write_text("This is not a model.")
    relu = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] input) => (float[N,3,8,8] y) { y = Relu(input) }'
    )
    onnx.save(relu, at / "relu.onnx")
    (at / "list.yaml").write_text("- a\n- b\n")
    (at / "broken.yaml").write_text("target: [macs=0.5\n")
    (at / "unknown.yaml").write_text("targte: macs=0.5\n")
    (at / "good.yaml").write_text("target: macs=0.6\nsamples: 48\nalign: 2\npreset: cifar10\nsize: [8, 8]\n")
    return at


def run(*arguments: object) -> int:
    """The exit code of a command in this process."""
    sys.argv = ["hmc-onnx", *map(str, arguments)]
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


pytestmark = pytest.mark.usefixtures("argv", "few_iterations")


def compress(folder: Path, out: Path, *extra: object, model: str = "model.onnx", data: str = "data.npz") -> int:
    given = [folder / model, "-o", out, "--data", folder / data, "--size", 8, 8, *FAST, *extra]
    return run("compress", *given, *([] if "--target" in extra else ["--target", "macs=0.6"]))


def test_compress_in_one_go_and_in_steps(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(folder, tmp_path / "a.onnx", "--report", tmp_path / "report.json") == 0
    said = capsys.readouterr().out
    assert "top-1" in said
    assert "64 images" in said
    assert json.loads((tmp_path / "report.json").read_text())["b"]["macs"] > 0
    data = ["--data", folder / "data.npz", "--size", 8, 8]
    assert run("profile", folder / "model.onnx", "-o", tmp_path / "profile.json", *data, *FAST) == 0
    assert run("plan", tmp_path / "profile.json", "-o", tmp_path / "plan.json", "--target", "macs=0.6") == 0
    assert run("apply", folder / "model.onnx", "--plan", tmp_path / "plan.json", "-o", tmp_path / "b.onnx", *data) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    capsys.readouterr()
    assert run("verify", folder / "model.onnx", tmp_path / "b.onnx", *data, "--no-labels") == 0
    said = capsys.readouterr().out
    assert "latency, batch 8" in said
    assert "top-1" not in said
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert all(layer["bears"] in ("lowrank", "prune", "both", "keep") for layer in plan["layers"].values())
    # a plan edited by hand: one layer is left alone
    low = ["--target", "macs=0.6", "--strategy", "lowrank"]
    assert run("plan", tmp_path / "profile.json", "-o", tmp_path / "low.json", *low) == 0
    plan = json.loads((tmp_path / "low.json").read_text())
    name = next(n for n, layer in plan["layers"].items() if layer["rank"])
    plan["layers"][name] |= {"method": "keep", "rank": 0}
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    edited = ["--plan", tmp_path / "edited.json", "-o", tmp_path / "c.onnx"]
    assert run("apply", folder / "model.onnx", *edited, *data) == 0
    assert name in [n.name for n in onnx.load(tmp_path / "c.onnx").graph.node]
    assert f"{name}/0" not in [n.name for n in onnx.load(tmp_path / "c.onnx").graph.node]
    assert any(n.name.endswith("/0") for n in onnx.load(tmp_path / "c.onnx").graph.node)


def test_a_settings_file_is_as_good_as_options_which_go_before_it(folder: Path, tmp_path: Path) -> None:
    common = [folder / "model.onnx", "--data", folder / "data.npz"]
    assert run("compress", *common, "-o", tmp_path / "a.onnx", "--config", folder / "good.yaml") == 0
    options = ["--preset", "cifar10", "--size", 8, 8, "--target", "macs=0.6", *FAST]
    assert run("compress", *common, "-o", tmp_path / "b.onnx", *options) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    other = ["--config", folder / "good.yaml", "--target", "macs=0.8"]
    assert run("compress", *common, "-o", tmp_path / "c.onnx", *other) == 0
    assert (tmp_path / "c.onnx").stat().st_size > (tmp_path / "a.onnx").stat().st_size


def test_inspect_names_every_conv_and_group(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", folder / "model.onnx") == 0
    said = capsys.readouterr().out
    for node in onnx.load(folder / "model.onnx").graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert node.name in said
    assert "decompose (svd, spatial, tucker, cp); prune inputs and outputs" in " ".join(said.replace("│", " ").split())
    assert "the model's output" in " ".join(said.replace("│", " ").split())


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hmc_onnx", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"numpy", "scipy", "onnx", "onnxruntime", "pydantic", "torch", "PIL"}
    assert "compress" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nothing.onnx"}, "no model file at"),
        ({"model": "truncated.onnx"}, "truncated.onnx"),
        ({"model": "text.onnx"}, "is not an ONNX file"),
        ({"model": "relu.onnx"}, "has no Conv"),
        ({"model": "larger.onnx"}, "size"),
        ({"data": "nothing"}, "does not exist"),
        ({"data": "empty"}, "empty"),
        ({"data": "broken"}, "a.png"),
        ({"data": "model.onnx"}, "unknown kind"),
        ({"data": "integers.npz"}, "int32"),
        ({"data": "nan.npz"}, "input"),
        ({"data": "shape.npz"}, "(3, 9, 9)"),
        ({"data": "layout.npz"}, "(8, 8, 3)"),
        ({"data": "labels.npz"}, "5 classes"),
        ({"extra": ["--target", "macs=0"]}, "out of range"),
        ({"extra": ["--target", "macs=1.5"]}, "out of range"),
        ({"extra": ["--target", "half"]}, "is not understood"),
        ({"extra": ["--target", "macs=0.0001"]}, "is below what strategy 'hmc' can reach"),
        ({"extra": ["--samples", "0"]}, "samples"),
        ({"extra": ["--std", "0", "1", "1"]}, "std"),
        ({"extra": ["--config", "list.yaml"]}, "holds no options"),
        ({"extra": ["--config", "broken.yaml"]}, "is not valid YAML"),
        ({"extra": ["--config", "unknown.yaml"]}, "unknown option 'targte'"),
        ({"extra": ["--config", "nothing.yaml"]}, "cannot read the settings"),
        ({"extra": ["--test-data", "nothing"]}, "does not exist"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence_and_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict, message: str
) -> None:
    extra = [
        folder / value if option in ("--config", "--test-data") else value
        for option, value in zip(["", *options.get("extra", [])], options.get("extra", []), strict=False)
    ]
    given = {k: v for k, v in options.items() if k != "extra"}
    assert compress(folder, tmp_path / "out.onnx", *extra, **given) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if " steps" not in line]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_are_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(folder / "model.onnx")
    before = (folder / "model.onnx").read_bytes()
    refused = {
        tmp_path: "is a folder",
        tmp_path / "missing" / "out.onnx": "does not exist",
        folder / "data.npz" / "out.onnx": "is not a folder",
        folder / "model.onnx": "is an input too",
        link: "is an input too",
        Path("/proc/out.onnx"): "cannot be written",
    }
    for path, message in refused.items():
        assert compress(folder, path) == 1
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if " steps" not in line]
        assert len(errors) == 1
        assert message in errors[0]
    assert (folder / "model.onnx").read_bytes() == before


def test_plans_for_others_and_broken_ones_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", folder / "data.npz", "--size", 8, 8]
    assert run("profile", folder / "model.onnx", "-o", tmp_path / "profile.json", *data, *FAST) == 0
    assert run("plan", tmp_path / "profile.json", "-o", tmp_path / "plan.json", "--target", "macs=0.6") == 0
    (tmp_path / "half.json").write_text((tmp_path / "plan.json").read_text()[:200])
    capsys.readouterr()
    for model, plan, message in (
        ("other.onnx", "plan.json", "made for another model"),
        ("model.onnx", "profile.json", "is not a valid plan"),
        ("model.onnx", "half.json", "is not a valid plan"),
        ("model.onnx", "none.json", "cannot read the plan"),
    ):
        out = tmp_path / "out.onnx"
        assert run("apply", folder / model, "--plan", tmp_path / plan, "-o", out, *data) == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert message in errors[0]
        assert not out.exists()
    assert run("plan", tmp_path / "profile.json", "-o", tmp_path / "p.json") == 1
    assert "--target is missing" in capsys.readouterr().err
    assert run("verify", folder / "model.onnx", folder / "classes.onnx", *data) == 1
    assert "differs in type or shape" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_file(folder: Path, tmp_path: Path) -> None:
    # a limit on the size of files a process may write fails as a full disk does, at the write
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "import onnx; from passes.graph.files import save; from passes.core.errors import OutputError\n"
        "try: save(onnx.load(sys.argv[1]), sys.argv[2])\n"
        "except OutputError as e: print(e)"
    )
    given = [sys.executable, "-c", code, folder / "model.onnx", tmp_path / "out.onnx"]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("workers_by_default")
def test_an_interrupt_is_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    given = [
        folder / "model.onnx",
        "-o",
        tmp_path / "out.onnx",
        "--data",
        folder / "floats.npz",
        "--target",
        "macs=0.5",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "hmc_onnx", "compress", *given],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("second moments")
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in errors.splitlines() if " steps" not in line] == ["interrupted: nothing was written"]
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    raise AssertionError("worker processes are left")


def test_a_folder_a_class_gives_labels(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [folder / "model.onnx", folder / "model.onnx", "--data", folder / "classes", "--size", 8, 8]
    assert run("verify", *given) == 0
    said = capsys.readouterr().out
    assert "top-1" in said
    assert "48 images" in said
    assert "100.00%" in said
