"""A folder that was handed over and changed since, damaged, or never written: each is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graphs import resnet

from hmc_onnx.api import Handoff, handed_over, handoff
from passes.core.errors import ModelError
from passes.graph.files import save


def test_a_folder_of_something_else_or_a_changed_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model that was handed over"):
        handed_over(tmp_path)
    handoff(resnet(), "triton", tmp_path / "out", options=Handoff(name="net"))
    save(resnet(classes=7), tmp_path / "out" / "net" / "1" / "model.onnx")
    with pytest.raises(ModelError, match="has other outputs than the model beside it"):
        handed_over(tmp_path / "out")
    (tmp_path / "out" / "net" / "config.pbtxt").write_text("name: {")
    with pytest.raises(ModelError, match="is not the configuration of a model"):
        handed_over(tmp_path / "out")
    with pytest.raises(ModelError, match=r"out/net/config.pbtxt' is a file: give the folder that"):
        handed_over(tmp_path / "out" / "net" / "config.pbtxt")
    with pytest.raises(ModelError, match=r"none' does not exist: give the folder that"):
        handed_over(tmp_path / "none")


FILES = {
    "triton": ["net/1/model.onnx"],
    "tensorrt": ["model.onnx", "build_engine.sh", "provider_options.json"],
    "onnxruntime": ["model.onnx"],
}


@pytest.mark.parametrize(("to", "file"), [(to, file) for to, files in FILES.items() for file in files])
def test_a_file_that_is_missing_is_named(to: str, file: str, tmp_path: Path) -> None:
    handoff(resnet(), to, tmp_path / "out", options=Handoff(name="net"))
    (tmp_path / "out" / file).unlink()
    with pytest.raises(ModelError, match=f"out/{file}' is missing: write the folder again"):
        handed_over(tmp_path / "out")


@pytest.mark.parametrize(
    ("to", "model", "naming"),
    [
        ("triton", "net/1/model.onnx", "net/config.pbtxt"),
        ("tensorrt", "model.onnx", "provider_options.json"),
        ("onnxruntime", "model.onnx", "session.json"),
    ],
)
def test_engines_of_another_model_are_refused(to: str, model: str, naming: str, tmp_path: Path) -> None:
    handoff(resnet(), to, tmp_path / "out", options=Handoff(name="net", provider="tensorrt"))
    assert handed_over(tmp_path / "out").provider == "tensorrt"
    whole = (tmp_path / "out" / naming).read_text()
    if to != "tensorrt":  # whose script has the digest, too
        for without in (whole.replace("trt_engine_cache_prefix", "unknown"), whole.replace("_prefix", "_x")):
            (tmp_path / "out" / naming).write_text(without)
            with pytest.raises(ModelError, match=f"out/{naming}' does not name its engines after the model"):
                handed_over(tmp_path / "out")
        (tmp_path / "out" / naming).write_text(whole)
    save(resnet(seed=1), tmp_path / "out" / model)
    with pytest.raises(ModelError, match=f"out/{naming}' does not name its engines after the model"):
        handed_over(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  dims: 3\n", "", "has other inputs than the model beside it"),
        ("  data_type: TYPE_FP32\n", "", r"is not the configuration of a model \('data_type'\)"),
        ("  key: ", "  name: ", r"is not the configuration of a model \('key'\)"),
        ("max_batch_size: 16", "max_batch_size: -1", "a number of images or threads is below 0"),
        ('string_value: "3"', 'string_value: "-3"', "a number of images or threads is below 0"),
        ('backend: "onnxruntime"', 'backend: "pytorch"', "is for the backend 'pytorch'"),
        ('filename: "model.onnx"', 'filename: "other.onnx"', r"1/other\.onnx' is missing"),
        ("max_batch_size: 16", "max_batch_size: " + 5000 * "{", "is not the configuration of a model"),
    ],
)
def test_a_changed_configuration_is_refused_in_a_sentence(old: str, new: str, says: str, tmp_path: Path) -> None:
    handoff(resnet(), "triton", tmp_path / "out", options=Handoff(name="net", batch=16, threads=3))
    config = tmp_path / "out" / "net" / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ModelError, match=says):
        handed_over(tmp_path / "out")


def test_what_triton_allows_in_a_configuration_is_read(tmp_path: Path) -> None:
    handoff(resnet(), "triton", tmp_path / "out", options=Handoff(name="net", provider="auto"))
    config = tmp_path / "out" / "net" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group { }\noptimization { graph { level: 1 } }\n")
    assert handed_over(tmp_path / "out").provider == "auto"


def test_each_provider_needs_its_options(tmp_path: Path) -> None:
    handoff(resnet(), "onnxruntime", tmp_path / "out")
    session = tmp_path / "out" / "session.json"
    session.write_text(json.dumps(json.loads(session.read_text()) | {"provider_options": []}))
    with pytest.raises(ModelError, match="give options for each of the providers"):
        handed_over(tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"providers": ["FooExecutionProvider"]}, "unknown provider 'FooExecutionProvider'"),
        ({"providers": ["cpu"]}, "'cpu' is not onnxruntime's name of a provider"),
        ({"batch": 10**10}, "at batch, input should be less than or equal to"),
        ({"intra_op_num_threads": 2**31}, "at intra_op_num_threads, input should be less than or equal to"),
    ],
)
def test_session_options_that_cannot_be_are_refused(changed: dict, says: str, tmp_path: Path) -> None:
    handoff(resnet(), "onnxruntime", tmp_path / "out")
    session = tmp_path / "out" / "session.json"
    session.write_text(json.dumps(json.loads(session.read_text()) | changed))
    with pytest.raises(ModelError, match=says):
        handed_over(tmp_path / "out")


def test_a_script_that_is_no_text_is_refused(tmp_path: Path) -> None:
    handoff(resnet(), "tensorrt", tmp_path / "out")
    (tmp_path / "out" / "build_engine.sh").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"build_engine\.sh' does not name its engines"):
        handed_over(tmp_path / "out")


def test_a_script_that_builds_the_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    for seed, folder in enumerate(("a", "b")):
        handoff(resnet(seed=seed), "tensorrt", tmp_path / folder)
    (tmp_path / "b" / "build_engine.sh").replace(tmp_path / "a" / "build_engine.sh")
    with pytest.raises(ModelError, match=r"build_engine\.sh' does not name its engines after the model"):
        handed_over(tmp_path / "a")
