"""The model repository for Triton, its configuration parsed by Triton's own protobuf."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from graphs import Builder, resnet
from tritonclient.grpc import model_config_pb2

from hmc_onnx.api import Handoff, Images, Provenance, handed_over, handoff
from hmc_onnx.handoff.text_format import parsed
from hmc_onnx.records.provenance import with_provenance
from passes.core.errors import ModelError, OutputError
from passes.graph.files import load
from passes.graph.model import digest

MADE = Provenance(
    version="1", original="a", target="none", precision="fp32", strategy="hmc", plan="b",
    batch=16, threads=3, provider="cpu",
)  # fmt: skip


def repository(
    proto: onnx.ModelProto, at: Path, images: Images | None = None, **options: object
) -> model_config_pb2.ModelConfig:
    """The configuration of a model that is handed over."""
    handoff(proto, "triton", at, options=Handoff(name="net", **options), images=images)
    text = (at / "net" / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def pooled(shape: tuple[int | str, ...], kind: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    b = Builder()
    x = b.add("Cast", ["input"], to=onnx.TensorProto.FLOAT) if kind != onnx.TensorProto.FLOAT else "input"
    proto = b.model(b.add("Flatten", [b.add("GlobalAveragePool", [b.conv(x, 3, 5)])]), shape)
    proto.graph.input[0].type.tensor_type.elem_type = kind
    return proto


def test_each_field_is_as_it_was_planned(tmp_path: Path) -> None:
    model = with_provenance(resnet(), MADE)
    config = repository(model, tmp_path / "out")
    output = model.graph.output[0].name
    assert (config.name, config.backend, config.platform) == ("net", "onnxruntime", "")
    assert config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 16
    (only,) = config.input
    assert (only.name, only.data_type, list(only.dims)) == ("input", model_config_pb2.TYPE_FP32, [3, 8, 8])
    (only_output,) = config.output
    assert (only_output.name, only_output.data_type, list(only_output.dims)) == (
        output,
        model_config_pb2.TYPE_FP32,
        [5],
    )
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert config.HasField("dynamic_batching")
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert [w.batch_size for w in config.model_warmup] == [1, 16]
    for warmup in config.model_warmup:
        fed = warmup.inputs["input"]
        assert (fed.data_type, list(fed.dims), fed.random_data) == (model_config_pb2.TYPE_FP32, [3, 8, 8], True)
    assert not config.HasField("optimization")
    assert load(tmp_path / "out" / "net" / "1" / "model.onnx") == model


def test_what_is_not_said_is_left_to_triton(tmp_path: Path) -> None:
    config = repository(resnet(), tmp_path / "out")
    assert config.max_batch_size == 1
    assert not config.instance_group and not config.parameters and not config.HasField("dynamic_batching")
    assert [w.batch_size for w in config.model_warmup] == [1]


def test_a_fixed_batch_is_part_of_the_shapes(tmp_path: Path) -> None:
    config = repository(pooled((2, 3, 8, 8)), tmp_path / "out")
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [2, 3, 8, 8] and list(config.output[0].dims) == [2, 5]
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 1 and list(warmup.inputs["input"].dims) == [2, 3, 8, 8]


def test_an_open_size_stays_open_and_is_warmed_up_at_the_size_that_is_given(tmp_path: Path) -> None:
    config = repository(pooled(("N", 3, "H", "W")), tmp_path / "out", Images(size=(16, 24)))
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.model_warmup[0].inputs["input"].dims) == [3, 16, 24]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (onnx.TensorProto.UINT8, model_config_pb2.TYPE_UINT8),
        (onnx.TensorProto.FLOAT16, model_config_pb2.TYPE_FP16),
        (onnx.TensorProto.DOUBLE, model_config_pb2.TYPE_FP64),
    ],
)
def test_types_are_those_of_the_model(kind: int, expected: int, tmp_path: Path) -> None:
    config = repository(pooled(("N", 3, 8, 8), kind), tmp_path / "out")
    assert config.input[0].data_type == expected == config.model_warmup[0].inputs["input"].data_type


def test_a_type_that_triton_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'input' is of type complex64, which Triton does not know"):
        repository(pooled(("N", 3, 8, 8), onnx.TensorProto.COMPLEX64), tmp_path / "out")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_gpus_are_asked_for(provider: str, tmp_path: Path) -> None:
    config = repository(resnet(), tmp_path / "out", provider=provider, batch=8)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [a.name for a in accelerators] == (["tensorrt"] if provider == "tensorrt" else [])
    if accelerators:
        parameters = dict(accelerators[0].parameters)
        assert parameters["trt_engine_cache_prefix"].startswith("net_")
        assert parameters["trt_profile_max_shapes"] == "input:8x3x8x8"
        other = repository(resnet(seed=1), tmp_path / "other", provider=provider, batch=8)
        theirs = other.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters
        assert theirs["trt_engine_cache_prefix"] != parameters["trt_engine_cache_prefix"]


@pytest.mark.parametrize(
    ("options", "mode"), [((), None), (("trt_fp16_enable=0",), None), (("trt_fp16_enable=1",), "FP16")]
)
def test_tensorrts_precision_is_that_which_is_asked_for(
    options: tuple[str, ...], mode: str | None, tmp_path: Path
) -> None:
    config = repository(resnet(), tmp_path / "out", provider="tensorrt", provider_option=options)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters.get("precision_mode") == mode


def test_a_model_of_several_files_is_the_folder_that_triton_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passes.graph.files.EXTERNAL_DATA_THRESHOLD", 0)
    model = resnet(widths=(32, 64))
    repository(model, tmp_path / "out")
    folder = tmp_path / "out" / "net" / "1" / "model.onnx"
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert digest(load(folder / "model.onnx")) == digest(handed_over(tmp_path / "out").proto) == digest(model)


def test_our_reader_finds_what_tritons_finds(tmp_path: Path) -> None:
    config = repository(resnet(), tmp_path / "out", provider="tensorrt", batch=8)
    text = text_format.MessageToString(config)  # as Triton itself would write it
    read = parsed(text)
    assert read["max_batch_size"] == [8] and read["name"] == ["net"]
    assert read["input"][0]["dims"] == [3, 8, 8] and read["input"][0]["data_type"] == ["TYPE_FP32"]
    in_brackets = text_format.MessageToString(config, use_short_repeated_primitives=True)
    assert "dims: [3, 8, 8]" in in_brackets and parsed(in_brackets) == read


def test_a_repository_holds_several_models_and_each_is_read_by_its_own_folder(tmp_path: Path) -> None:
    models = {"one": resnet(), "two": resnet(seed=1)}
    for name, model in models.items():
        handoff(model, "triton", tmp_path / "out", options=Handoff(name=name))
    with pytest.raises(OutputError, match="two' is there already"):
        handoff(models["one"], "triton", tmp_path / "out", options=Handoff(name="two"))
    with pytest.raises(ModelError, match=r"holds 2 models \('one', 'two'\): give the folder of one of them"):
        handed_over(tmp_path / "out")
    for name, model in models.items():
        assert digest(handed_over(tmp_path / "out" / name).proto) == digest(model)
