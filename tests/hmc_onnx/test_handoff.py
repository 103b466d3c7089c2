"""What is handed over to onnxruntime and TensorRT, and that it is read back as it was planned."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Builder, images, resnet
from PIL import Image

from calib.runtime.quantisation import quantise
from calib.runtime.sessions import Session
from hmc_onnx.api import Handoff, Images, Provenance, handed_over, handoff
from hmc_onnx.handoff.tensorrt_check import check
from hmc_onnx.records.provenance import with_provenance
from passes.core.errors import ModelError, OutputError, SettingsError
from passes.graph.files import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "resnet20-cifar10.onnx"
MADE = Provenance(
    version="1", original="a", target="none", precision="fp32", strategy="hmc", plan="b",
    batch=16, threads=3, provider="cpu",
)  # fmt: skip
ALL = ("triton", "tensorrt", "onnxruntime")


def fixed(batch: int) -> onnx.ModelProto:
    """A network that takes `batch` images and no other number."""
    b = Builder()
    x = b.add("Flatten", [b.add("GlobalAveragePool", [b.conv("input", 3, 5)])])
    return b.model(x, (batch, 3, 8, 8))


def in_open_size() -> onnx.ModelProto:
    b = Builder()
    x = b.add("Flatten", [b.add("GlobalAveragePool", [b.conv("input", 3, 5)])])
    return b.model(x, ("N", 3, "H", "W"), 5)


# the folder


@pytest.mark.parametrize("to", ALL)
def test_a_folder_is_written_whole_or_not_at_all(to: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    handoff(resnet(), to, tmp_path / "empty")
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) & 0o500 == 0o500
    before = {p: p.read_bytes() for p in (tmp_path / "empty").rglob("*") if p.is_file()}
    with pytest.raises(OutputError, match="is no empty folder"):
        handoff(resnet(seed=1), to, tmp_path / "empty")
    assert before == {p: p.read_bytes() for p in (tmp_path / "empty").rglob("*") if p.is_file()}
    with pytest.raises(OutputError, match=r"missing' does not exist: make it first"):
        handoff(resnet(), to, tmp_path / "missing" / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leaves the size of its input"):
        handoff(in_open_size(), "tensorrt", tmp_path / "new")
    with pytest.raises(SettingsError, match="unknown target 'openvino': use triton, tensorrt, onnxruntime"):
        handoff(resnet(), "openvino", tmp_path / "new")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ALL)
def test_the_same_model_is_handed_over_in_the_same_bytes(to: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        handoff(with_provenance(resnet(), MADE), to, tmp_path / folder, options=Handoff(name="net"))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# read back


@pytest.mark.parametrize("to", ALL)
def test_what_is_read_back_is_the_model_as_it_was_planned(to: str, tmp_path: Path) -> None:
    model = with_provenance(resnet(), MADE)
    handoff(model, to, tmp_path / "out")
    found = handed_over(tmp_path / "out")
    assert found.proto == model
    if to == "tensorrt":
        assert found.provider == "tensorrt"
    else:
        assert (found.batch, found.provider, found.threads) == (16, "cpu", 3)


@pytest.mark.parametrize("to", ["triton", "onnxruntime"])
def test_options_go_before_what_the_file_says(to: str, tmp_path: Path) -> None:
    options = Handoff(batch=4, threads=0, provider="cuda")
    handoff(with_provenance(resnet(), MADE), to, tmp_path / "out", options=options)
    found = handed_over(tmp_path / "out")
    assert (found.batch, found.provider, found.threads) == (4, "cuda", 0)


def test_options_of_the_planned_provider_are_handed_over_and_those_of_another_are_not(tmp_path: Path) -> None:
    made = MADE.model_copy(update={"provider": "openvino", "provider_option": ("device_type=CPU", "num_streams=1")})
    model = with_provenance(resnet(), made)
    assert Provenance.read(model) == made
    handoff(model, "onnxruntime", tmp_path / "planned")
    assert handed_over(tmp_path / "planned").provider_option == made.provider_option
    said = json.loads((tmp_path / "planned" / "session.json").read_text())
    assert said["provider_options"] == [{"device_type": "CPU", "num_streams": "1"}, {}]
    handoff(model, "onnxruntime", tmp_path / "given", options=Handoff(provider_option=("device_type=GPU",)))
    assert handed_over(tmp_path / "given").provider_option == ("device_type=GPU",)
    handoff(model, "onnxruntime", tmp_path / "other", options=Handoff(provider="cpu"))
    assert handed_over(tmp_path / "other").provider_option == ()
    (remark,) = handoff(model, "triton", tmp_path / "triton")
    assert "options of openvino, and these are left out: device_type=CPU, num_streams=1." in remark
    with pytest.raises(SettingsError, match="`provider_option` is for one provider: name it with `provider`"):
        handoff(resnet(), "onnxruntime", tmp_path / "none", options=Handoff(provider_option=("device_type=GPU",)))


def test_given_options_of_tensorrt_go_before_its_own(tmp_path: Path) -> None:
    given = Handoff(provider_option=("trt_engine_cache_path=elsewhere", "trt_max_workspace_size=1000"))
    handoff(resnet(), "tensorrt", tmp_path / "out", options=given)
    options = json.loads((tmp_path / "out" / "provider_options.json").read_text())
    assert options["trt_engine_cache_path"] == "elsewhere" and options["trt_max_workspace_size"] == "1000"
    assert options["trt_timing_cache_path"] == "engines"


def test_a_planned_provider_may_be_named_in_full(tmp_path: Path) -> None:
    entries = {"provider": "OpenVINOExecutionProvider", "provider_option": ("device_type=GPU",)}
    model = with_provenance(resnet(), Provenance.model_construct(**(MADE.model_dump() | entries)))
    handoff(model, "onnxruntime", tmp_path / "out", options=Handoff(provider="openvino"))
    assert handed_over(tmp_path / "out").provider_option == ("device_type=GPU",)


@pytest.mark.parametrize("to", ["tensorrt", "triton"])
def test_engines_cannot_be_kept_under_a_name_that_another_model_may_have(to: str, tmp_path: Path) -> None:
    def given(prefix: str) -> Handoff:
        return Handoff(name="net", provider="tensorrt", provider_option=(f"trt_engine_cache_prefix={prefix}",))

    with pytest.raises(SettingsError, match=r"leave it out, or give own_[0-9a-f]{16}$") as refused:
        handoff(resnet(), to, tmp_path / "out", options=given("own"))
    handoff(resnet(), to, tmp_path / "out", options=given(str(refused.value).split()[-1]))
    assert handed_over(tmp_path / "out").provider == "tensorrt"


@pytest.mark.parametrize("options", [{"batch": 10**11}, {"threads": 2**31}])
def test_numbers_that_servers_cannot_hold_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="less than or equal to"):
        Handoff(**options)


def test_a_batch_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="takes batches of 2"):
        handoff(fixed(2), "onnxruntime", tmp_path / "out", options=Handoff(batch=8))


@pytest.mark.parametrize("to", ["triton", "tensorrt"])
def test_preprocessing_that_is_not_done_there_is_refused(to: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`preset`: only what is handed over to onnxruntime prepares images"):
        handoff(resnet(), to, tmp_path / "out", images=Images(preset="cifar10"))


@pytest.mark.parametrize("name", ["my model", "-x", ""])
def test_a_name_that_servers_do_not_take_is_refused(name: str) -> None:
    shown = name or "''"
    with pytest.raises(SettingsError, match=f"`name` {shown}: use letters, digits"):
        Handoff(name=name)


def test_engines_take_as_many_images_as_are_planned(tmp_path: Path) -> None:
    handoff(resnet(), "tensorrt", tmp_path / "out", options=Handoff(batch=8))
    assert handed_over(tmp_path / "out").batch == 8
    handoff(fixed(3), "tensorrt", tmp_path / "fixed")
    assert handed_over(tmp_path / "fixed").batch is None


# onnxruntime


def served_class(folder: Path, image: Path) -> str:
    return subprocess.run(
        [sys.executable, folder / "serve.py", image], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@pytest.mark.parametrize(
    "options",
    [
        Images(preset="cifar10"),
        Images(size=(32, 32), resize=40, interpolation="bicubic", channels="bgr", scale=1, mean=(104, 117, 124)),
    ],
    ids=["preset", "caffe"],
)
def test_the_script_gives_the_class_that_the_library_gives(options: Images, tmp_path: Path) -> None:
    handoff(EXAMPLE, "onnxruntime", tmp_path / "out", images=options)
    session, how = Session(load(EXAMPLE)), options.preprocess()
    (name,) = session.input_shapes
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), np.uint8) // np.array([1, 3, 2], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = session.run({name: how.apply(Image.open(tmp_path / "image.png"))[None]})[0].argmax()
    assert served_class(tmp_path / "out", tmp_path / "image.png") == str(expected)


@pytest.mark.parametrize(
    "options",
    [
        Images(preset="imagenet"),
        Images(preset="cifar10", layout="NHWC"),
        Images(size=(20, 30), interpolation="bicubic", channels="bgr", scale=1, mean=(104, 117, 124)),
        Images(size=(20, 20), mean=(0.5,), std=(0.25,)),
    ],
)
def test_the_script_makes_of_an_image_exactly_what_the_library_makes(options: Images, tmp_path: Path) -> None:
    how = options.preprocess()
    assert how.size is not None
    shape = (how.channels, *how.size) if how.layout == "NCHW" else (*how.size, how.channels)
    b = Builder()
    x = b.add("Identity", [b.add("Mul", ["input", b.weight("one", np.float32(1))])])
    handoff(b.model(x, ("N", *shape)), "onnxruntime", tmp_path / "out", images=options)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(tmp_path / "image.png")
    script = tmp_path / "out" / "serve.py"
    kept = tmp_path / "answer.npy"
    script.write_text(re.sub(r"\nprint\(.*\)\n", f"\nnp.save({str(kept)!r}, answer)\n", script.read_text()))
    served_class(tmp_path / "out", tmp_path / "image.png")
    np.testing.assert_array_equal(np.load(kept)[0], how.apply(Image.open(tmp_path / "image.png")))


@pytest.mark.parametrize(("image", "why"), [("no.png", "No such file or directory"), ("text.png", "it is no image")])
def test_the_script_names_an_image_that_it_cannot_read(image: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    handoff(EXAMPLE, "onnxruntime", tmp_path / "out")
    script = [sys.executable, tmp_path / "out" / "serve.py", image]
    ended = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, f"cannot read the image '{image}' ({why})\n")


def test_a_model_of_a_fixed_batch_is_served_one_image(tmp_path: Path) -> None:
    handoff(fixed(3), "onnxruntime", tmp_path / "out")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    assert served_class(tmp_path / "out", tmp_path / "image.png") in {"0", "1", "2", "3", "4"}


def test_preprocessing_that_does_not_fit_is_refused_and_none_at_all_is_remarked(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is of shape \(\?, 3, 8, 8\), and images would come out"):
        handoff(resnet(), "onnxruntime", tmp_path / "out", images=Images(preset="imagenet"))
    (remark,) = handoff(resnet(), "onnxruntime", tmp_path / "out")
    assert "divides pixels by 255" in remark


def test_the_options_of_a_session_are_onnxruntimes_own(tmp_path: Path) -> None:
    import onnxruntime

    handoff(with_provenance(resnet(), MADE), "onnxruntime", tmp_path / "out", options=Handoff(provider="tensorrt"))
    said = json.loads((tmp_path / "out" / "session.json").read_text())
    assert said["providers"][0] == "TensorrtExecutionProvider" and len(said["provider_options"]) == 3
    assert set(said["providers"]) <= set(onnxruntime.get_all_providers())
    assert hasattr(onnxruntime.SessionOptions(), "intra_op_num_threads") and said["intra_op_num_threads"] == 3


# TensorRT


def command_of(folder: Path, listed: str, tmp_path: Path) -> list[str]:
    """What the script calls, of a trtexec whose help lists some options."""
    fake, said = tmp_path / "trtexec", tmp_path / "said"
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = --help ]; then echo "{listed}"; exit 0; fi\n'
        f'for a in "$@"; do echo "$a"; done >{said}\n'
    )
    fake.chmod(0o755)
    subprocess.run([folder / "build_engine.sh"], check=True, env={"TRTEXEC": str(fake), "PATH": "/usr/bin:/bin"})
    return said.read_text().splitlines()


def test_the_script_builds_a_strongly_typed_engine_for_one_to_the_planned_number_of_images(tmp_path: Path) -> None:
    handoff(with_provenance(resnet(), MADE), "tensorrt", tmp_path / "out", options=Handoff(name="net"))
    ten = command_of(tmp_path / "out", "--stronglyTyped   Create a strongly typed network", tmp_path)
    eleven = command_of(tmp_path / "out", "--onnx=<file>", tmp_path)
    assert ten == ["--stronglyTyped", *eleven]
    assert re.fullmatch(r"--saveEngine=net_[0-9a-f]{16}\.engine", eleven.pop(1))
    assert eleven == [
        "--onnx=model.onnx",
        "--minShapes=input:1x3x8x8",
        "--optShapes=input:16x3x8x8",
        "--maxShapes=input:16x3x8x8",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ]


def test_a_fixed_batch_has_no_profile_and_an_open_size_is_closed_as_it_is_said(tmp_path: Path) -> None:
    handoff(fixed(2), "tensorrt", tmp_path / "fixed")
    assert "Shapes" not in (tmp_path / "fixed" / "build_engine.sh").read_text()
    handoff(in_open_size(), "tensorrt", tmp_path / "open", images=Images(size=(16, 24)))
    assert "--optShapes=input:1x3x16x24" in (tmp_path / "open" / "build_engine.sh").read_text()


def test_engines_are_kept_apart_by_the_weights(tmp_path: Path) -> None:
    found = []
    for i, seed in enumerate((0, 0, 1)):
        handoff(resnet(seed=seed), "tensorrt", tmp_path / str(i), options=Handoff(name="net", batch=8))
        found.append(json.loads((tmp_path / str(i) / "provider_options.json").read_text()))
    assert found[0] == found[1] and found[0]["trt_engine_cache_enable"] == "1"
    assert found[0]["trt_engine_cache_prefix"] != found[2]["trt_engine_cache_prefix"]
    assert found[0]["trt_profile_max_shapes"] == "input:8x3x8x8"


def test_what_tensorrt_cannot_build_is_refused(tmp_path: Path) -> None:
    for_cpu = quantise(resnet(), [{"input": images(8)}])
    with pytest.raises(ModelError, match=r"uint8 activations \(compress with `provider='tensorrt'`"):
        handoff(for_cpu, "tensorrt", tmp_path / "out")
    with pytest.raises(ModelError, match="TensorRT cannot build the model"):
        handoff(for_cpu, "triton", tmp_path / "out", options=Handoff(provider="tensorrt"))
    for_gpu = quantise(resnet(), [{"input": images(8)}], provider="CUDAExecutionProvider")
    handoff(for_gpu, "triton", tmp_path / "repository", options=Handoff(provider="tensorrt"))
    handoff(for_gpu, "tensorrt", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "provider_options.json").read_text())["trt_int8_enable"] == "1"


def changed(proto: onnx.ModelProto, **node: str) -> onnx.ModelProto:
    for name, value in node.items():
        setattr(proto.graph.node[0], name, value)
    return proto


def test_each_thing_that_tensorrt_does_not_take_is_a_sentence() -> None:
    assert check(resnet()).reasons == [] and check(resnet()).remarks == []
    assert check(changed(resnet(), op_type="Det")).reasons == [
        "the Det node 'Conv_1' is an operator that it does not know"
    ]
    (plug_in,) = check(changed(resnet(), domain="com.microsoft")).reasons
    assert "only a plug-in could run" in plug_in
    shifted = quantise(resnet(), [{"input": images(8)}], provider="CUDAExecutionProvider")
    for tensor in shifted.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and not tensor.dims:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(3), tensor.name))
    (reason,) = check(shifted).reasons
    assert "more, has a zero point that is not 0" in reason
    double = resnet()
    double.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert check(double).reasons == [] and check(double).remarks == [
        "What is float64, such as 'input', is computed in float32"
    ]
    text = resnet()
    text.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    assert check(text).reasons == ["'input' is of type string"]
    old, new = resnet(), resnet()
    old.opset_import[0].version, new.opset_import[0].version = 8, 25
    assert len(check(old).reasons) == 1 and len(check(new).remarks) == 1


def test_tensorrt_is_no_place_for_another_provider(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`provider` cpu"):
        handoff(resnet(), "tensorrt", tmp_path / "out", options=Handoff(provider="cpu"))
