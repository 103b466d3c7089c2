"""Models that cannot be read, hold nothing to compress, or do not fit each other: one sentence, no output."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from conftest import Cli, Refuses
from onnx import helper
from zoo import parsed, resnet

from passes.graph.files import save

pytestmark = pytest.mark.usefixtures("few_iterations")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "nothing.onnx", "-o", "out.onnx", "--data", "splits.npz", "--target", "macs=0.5"),
        ("inspect", "nothing.onnx"),
        ("profile", "nothing.onnx", "-o", "out.json", "--data", "splits.npz"),
        ("apply", "nothing.onnx", "--plan", "plan.json", "-o", "out.onnx", "--data", "splits.npz"),
        ("verify", "nothing.onnx", "model.onnx", "--data", "splits.npz"),
        ("verify", "model.onnx", "nothing.onnx", "--data", "splits.npz"),
    ],
    ids=lambda a: f"{a[0]}-{a.index('nothing.onnx')}",
)
def test_a_missing_model(refuses: Refuses, given: Path, steps: Path, here: Path, arguments: tuple[str, ...]) -> None:
    for file in (given / "splits.npz", given / "model.onnx", steps / "plan.json"):
        shutil.copy(file, here)
    refuses(*arguments, says=("no model file at 'nothing.onnx'", "give the path"))


def test_a_truncated_model(refuses: Refuses, compress: Refuses, given: Path, here: Path) -> None:
    whole = (given / "model.onnx").read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        (here / "model.onnx").write_bytes(whole[:length])
        refuses("inspect", "model.onnx", says=("'model.onnx' is not an ONNX file, or", "export the model again"))
    compress(model="model.onnx", says=("'model.onnx' is not an ONNX file, or is damaged", "export the model again"))


def test_a_model_with_damaged_names(refuses: Refuses, given: Path, here: Path) -> None:
    whole = (given / "model.onnx").read_bytes()
    for name in (b"/conv1/Conv", b"zoo", b"logits", b"kernel_shape", b"conv1.weight"):
        assert name in whole
        (here / "model.onnx").write_bytes(whole.replace(name, b"\xff" * len(name)))
        refuses("inspect", "model.onnx", says=("'model.onnx'", "export the model again"))


@pytest.mark.parametrize("name", ["file.onnx", "file", "file.txt", "file.json", "file.textproto", "file.onnxtxt"])
def test_files_that_are_no_models(refuses: Refuses, here: Path, name: str) -> None:
    for content in (b"This is not a model.\n", b'{"irVersion": 8}', b"PK\x03\x04" + bytes(100)):
        (here / name).write_bytes(content)
        refuses("inspect", name, says=(f"'{name}' is not an ONNX file", "export the model again"))


def test_an_image_or_folder_as_model(compress: Refuses, given: Path, here: Path) -> None:
    compress(model=given / "flat" / "0.png", says=("0.png' is not an ONNX file", "export the model again"))
    shutil.copy(given / "flat" / "0.png", here / "image.onnx")
    compress(model="image.onnx", says=("'image.onnx' is not an ONNX file", "export the model again"))
    compress(model=given, says=("no model file at", "give the path of an ONNX file"))


def test_names_that_are_no_utf_8_are_escaped_in_reports(cli: Cli, given: Path, here: Path) -> None:
    model, data = here / os.fsdecode(b"mod\xe9l.onnx"), here / os.fsdecode(b"d\xff.npz")
    shutil.copy(given / "model.onnx", model)
    shutil.copy(given / "plain.npz", data)
    out = here / os.fsdecode(b"o\xe9.onnx")
    for report in (os.fsdecode(b"r\xe9.json"), os.fsdecode(b"r\xe9.html")):
        call = ["compress", model, "-o", out, "--data", data, "--target", "none", "--samples", 16, "--json"]
        done = cli(*call, "--report", here / report)
        assert (done.code, done.errors) == (0, [])
        assert r"o\xe9.onnx" in json.loads(done.out)["written"]
        assert r"mod\xe9l.onnx" in (here / report).read_text(encoding="utf-8").replace("\\\\", "\\")


def test_a_model_with_nothing_to_compress(compress: Refuses, here: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] input) => (float[N,3,8,8] y) { y = Relu(input) }'
    save(parsed(text), here / "relu.onnx")
    compress(model="relu.onnx", says=("no Conv", "nothing to compress", "give a convolutional network"))


def test_a_model_that_is_not_valid(compress: Refuses, given: Path, here: Path) -> None:
    proto = onnx.load(given / "model.onnx")
    proto.graph.node[1].op_type = "Unheard"
    onnx.save(proto, here / "op.onnx")
    compress(model="op.onnx", says=("'op.onnx': the ONNX checker rejects the model", "Unheard"))
    proto.graph.node[1].domain = "my.own"
    proto.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(proto, here / "domain.onnx")
    compress(model="domain.onnx", says=("onnxruntime cannot load the model", "my.own"))


def test_a_model_without_its_weights_file(compress: Refuses, given: Path, here: Path) -> None:
    proto = onnx.load(given / "model.onnx")
    onnx.save(proto, here / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (here / "weights").unlink()
    compress(model="model.onnx", says=("'model.onnx' cannot be read", "weights"))


def test_a_model_of_several_inputs_and_image_files(compress: Refuses, here: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] left, float[N,3,8,8] right) => (float[N,3,8,8] y) { y = Add(left, right) }"""
    save(parsed(text), here / "two.onnx")
    compress(model="two.onnx", says=("'left'", "store one array for each of left, right"))


def test_models_of_different_signatures(refuses: Refuses, given: Path, here: Path) -> None:
    model, data = given / "model.onnx", ["--data", given / "splits.npz"]
    says = ("the models' output 'logits' differs in type or shape", "compare like with like")
    refuses("verify", model, given / "seven.onnx", *data, says=says)
    save(resnet((1, 1), (4, 8), size=16, classes=5), here / "larger.onnx")
    refuses("verify", model, "larger.onnx", *data, says="the models' input 'input' differs in type or shape")
    proto = onnx.load(model)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "classes"
    save(proto, here / "renamed.onnx")
    refuses("verify", model, "renamed.onnx", *data, says="the models' outputs differ: logits against classes")
