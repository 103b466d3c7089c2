"""A model repository for NVIDIA Triton with its onnxruntime backend: NAME/config.pbtxt and NAME/1/model.onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from hmc_onnx.handoff.engines import enabled, engine_options
from hmc_onnx.handoff.served import Dims, Served
from hmc_onnx.handoff.tensorrt_check import check_buildable
from hmc_onnx.handoff.text_format import Constant, written
from passes.core.errors import ModelError, SettingsError
from passes.graph.files import save, weights_of

__all__ = ["ENGINES", "config", "tensors", "write"]

# Where the server keeps the engines that its TensorRT provider builds.
ENGINES = "/tmp/engines"
TYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.UINT16: "TYPE_UINT16",
    onnx.TensorProto.UINT32: "TYPE_UINT32",
    onnx.TensorProto.UINT64: "TYPE_UINT64",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT16: "TYPE_INT16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.STRING: "TYPE_STRING",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
}


def write(served: Served, folder: Path) -> list[str]:
    """Write a model of a repository into its folder, which is there; returns remarks, a sentence each.

    Raises:
        ModelError: TensorRT is to run the model and cannot build it, or the model has an input or output of a type that
            Triton does not know, or of an open size.
    """
    remarks = check_buildable(served.proto) if served.provider == "tensorrt" else []
    version = folder / "1"
    version.mkdir()
    (folder / "config.pbtxt").write_text(written(config(served)), encoding="utf-8")
    path = version / "model.onnx"
    save(served.proto, path)
    if weights_of(path).exists():  # a model of several files is a folder of this name, with model.onnx in it
        inside = version / "several"
        inside.mkdir()
        for file in (path, weights_of(path)):
            file.rename(inside / file.name)
        inside.rename(path)
    if served.provider_options and served.provider != "tensorrt":
        given = ", ".join(f"{key}={value}" for key, value in served.provider_options.items())
        remarks.append(f"Triton's backend does not take options of {served.provider}, and these are left out: {given}.")
    if served.open and served.batch == 1:
        remarks.append("The server runs one image at a time: give `batch` for it to join requests.")
    return remarks


# Where Triton's backend for onnxruntime runs the providers that it has.
KINDS = {"cpu": "KIND_CPU", "openvino": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}


def config(served: Served) -> dict[str, Any]:
    """Triton's ModelConfig.

    Where the number of images is open, Triton is told the largest number (its own default would be 4), and the shapes
    are those of one image. Where the model fixes it, `max_batch_size` is 0 and the shapes are whole.
    """
    most = served.batch if served.open else 0
    message: dict[str, Any] = {
        "name": served.name,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": most,
        **tensors(served),
    }
    if served.provider != "auto":
        if served.provider not in KINDS:
            raise SettingsError(
                f"`provider` {served.provider}: Triton's backend for onnxruntime does not have it: "
                f"give {', '.join(KINDS)} or auto"
            )
        message["instance_group"] = {"count": 1, "kind": Constant(KINDS[served.provider])}
    if served.provider == "openvino":
        message["optimization"] = {"execution_accelerators": {"cpu_execution_accelerator": {"name": "openvino"}}}
    if served.provider == "tensorrt":
        parameters = [
            {"key": key, "value": value} for key, value in _in_tritons_names(engine_options(served, ENGINES)).items()
        ]
        accelerator = {"name": "tensorrt", "parameters": parameters}
        message["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": accelerator}}
    if most > 1:
        message["dynamic_batching"] = {}
    if served.threads:
        message["parameters"] = {"key": "intra_op_thread_count", "value": {"string_value": str(served.threads)}}
    message["model_warmup"] = [_warmup(served, batch, most > 0) for batch in sorted({1, most or 1})]
    return message


def tensors(served: Served) -> dict[str, list[dict[str, Any]]]:
    """The model's inputs and outputs, in a configuration: without the axis of images where their number is open."""
    return {
        what: [_tensor(served, name, dims, served.open) for name, dims in values.items()]
        for what, values in (("input", served.inputs), ("output", served.outputs))
    }


def _tensor(served: Served, name: str, dims: Dims, batched: bool) -> dict[str, Any]:
    kept = dims[1:] if batched else dims
    if not kept:
        raise ModelError(
            f"the model's '{name}' is one number an image, for which Triton wants an axis: export it as N×1"
        )
    return {"name": name, "data_type": _type(served, name), "dims": [-1 if d is None else d for d in kept]}


def _type(served: Served, name: str) -> Constant:
    number = served.element_type(name)
    if number not in TYPES:
        kind = onnx.TensorProto.DataType.Name(number).lower()
        raise ModelError(f"the model's '{name}' is of type {kind}, which Triton does not know: export it with another")
    return Constant(TYPES[number])


def _warmup(served: Served, batch: int, batched: bool) -> dict[str, Any]:
    inputs = [
        {
            "key": name,
            "value": {
                "data_type": _type(served, name),
                "dims": list(shape[1:] if batched else shape),
                "random_data": True,
            },
        }
        for name, shape in served.shapes.items()
    ]
    return {"name": f"batch of {batch if batched else served.batch}", "batch_size": batch, "inputs": inputs}


def _in_tritons_names(options: dict[str, str]) -> dict[str, str]:
    """The options of onnxruntime's TensorRT provider under the names that Triton's backend has for them."""
    found = {k: v for k, v in options.items() if k not in ("trt_fp16_enable", "trt_int8_enable")}
    asked = [mode for mode in ("INT8", "FP16") if enabled(options, f"trt_{mode.lower()}_enable")]
    return found | ({"precision_mode": asked[0]} if asked else {})
