"""A model's signature, and calibration data that fit it, from whatever the user has."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, from_reader
from calib.data.preprocess import PRESETS, Preprocess
from calib.data.readers import read
from passes.core.errors import DataError, ModelError, SettingsError
from passes.graph.external import is_external
from passes.graph.files import load
from passes.graph.model import Model, constant_value
from passes.graph.protos import check, first_line
from passes.graph.sorting import in_topological_order

__all__ = [
    "check_evaluation_mode",
    "check_kind",
    "check_supported",
    "check_varied",
    "fit",
    "is_float",
    "load_data",
    "load_supported",
    "preprocessing",
    "signature",
]


# Operators of quantised models, besides those whose names begin with QLinear.
QUANTISED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits", "QAttention", "QGemm",
    "QuantizeLinear",
}  # fmt: skip
OLDEST_OPSET = 7


def check_supported(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with its nodes in order, if it is valid and of a kind that can be compressed.

    Raises:
        ModelError: it is not valid ONNX, is quantised, older than opset 7, or its external data were not loaded.
    """
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not is_external(tensor):
            raise ModelError(
                f"the model's weights were left in their file ('{tensor.name}' is one): load it with hmc_onnx.load, or "
                "with onnx.load and its external data"
            )
    try:
        proto = in_topological_order(proto)
        check(proto)
    except ValueError as e:
        raise ModelError(f"the model is damaged ({first_line(e)}): export it again") from e
    return check_kind(proto)


def check_kind(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, if it is of a kind that can be compressed; raises as `check_supported`."""
    for node in proto.graph.node:
        if node.op_type in QUANTISED or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"the model is quantised ({node.op_type} node '{node.name}'): "
                "compress the model that it was made from first, and quantise the result after"
            )
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is not None and opset < OLDEST_OPSET:
        raise ModelError(
            f"the model is of opset {opset}, and {OLDEST_OPSET} is the oldest that is read: "
            "export it again, or convert it with onnx.version_converter"
        )
    return proto


def check_evaluation_mode(model: Model) -> None:
    """Refuse a normalised model that was exported in training mode.

    Its outputs for an image depend on the other images of the batch, or on chance, so that no measurement holds.

    Raises:
        ModelError: a BatchNormalization or a Dropout is in training mode.
    """
    for node in model.graph.nodes:
        training = node.op == "BatchNormalization" and node.attrs.get("training_mode", 0)
        if node.op == "Dropout" and len(node.inputs) > 2 and not node.inputs[2].is_empty():
            value = constant_value(node.inputs[2])
            training = value is None or bool(value)
        if training and node.domain in (None, "", "ai.onnx"):
            raise ModelError(
                f"the model was exported in training mode ({node.op} node '{node.name}'), where the result for an "
                "image depends on the others of its batch, or on chance: export it in evaluation mode (model.eval())"
            )


def load_supported(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """`passes.graph.files.load` and `check_kind`."""
    return check_kind(load(path))


def signature(proto: onnx.ModelProto) -> dict[str, tuple[np.dtype, tuple[int | None, ...]]]:
    """Element type and shape (None: open) of each input that is not an initializer, by name."""
    initializers = {t.name for t in proto.graph.initializer}
    return {v.name: _tensor_type(v) for v in proto.graph.input if v.name not in initializers}


def _tensor_type(value: onnx.ValueInfoProto) -> tuple[np.dtype, tuple[int | None, ...]]:
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"the model's input '{value.name}' is not a tensor: only image classifiers are supported")
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims


def preprocessing(
    preset: str | None,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: tuple[int, int] | None = None,
    layout: str | None = None,
) -> Preprocess:
    """A preset with some values changed; without a preset, images scaled to [0, 1] in the layout NCHW.

    Raises:
        SettingsError: the preset is unknown or a value does not fit.
    """
    if preset is not None and preset not in PRESETS:
        raise SettingsError(f"unknown preset '{preset}': use {' or '.join(PRESETS)}, or give --mean, --std and --size")
    base = PRESETS[preset] if preset else Preprocess(size=None, resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    return base.with_overrides(mean=mean, std=std, size=size, layout=layout)


def load_data(
    proto: onnx.ModelProto,
    path: str | os.PathLike[str],
    preprocess: Preprocess,
    *,
    samples: int | None,
    seed: int = 0,
    split: str = "train",
) -> CalibrationData:
    """Read images for a model with one image input.

    Raises:
        DataError: the data cannot be read or do not fit the model.
        ModelError: the model has another number of inputs.
    """
    inputs = signature(proto)
    if len(inputs) != 1:
        raise ModelError(
            f"the model has {len(inputs)} inputs ({', '.join(inputs)}) and image files fit one: "
            "use the Python API with a CalibrationDataReader"
        )
    ((name, (_, shape)),) = inputs.items()
    data = read(
        path, input_name=name, input_shape=shape, preprocess=preprocess, samples=samples, seed=seed, split=split
    )
    return fit(proto, data)


def fit(
    proto: onnx.ModelProto, data: CalibrationData | Iterable[Any] | Any, samples: int | None = None
) -> CalibrationData:
    """Calibration data as feeds of the model, cast to its float types.

    Args:
        proto: the model.
        data: `CalibrationData`, a `CalibrationDataReader`, or an iterable as `from_reader` takes.
        samples: take this many at most from a reader.

    Raises:
        DataError: names, shapes or element types are not the model's.
    """
    inputs = signature(proto)
    if not isinstance(data, CalibrationData):
        data = from_reader(data, samples, input_name=next(iter(inputs)) if len(inputs) == 1 else None)
    if set(data.feeds) != set(inputs):
        raise DataError(
            f"the data feed {', '.join(sorted(data.feeds))} and the model's inputs are {', '.join(sorted(inputs))}: "
            "name the arrays as the inputs"
        )
    feeds = {}
    for name, (dtype, shape) in inputs.items():
        array = data.feeds[name]
        fits = len(shape) == array.ndim and all(
            d in (None, n) for d, n in zip(shape[1:], array.shape[1:], strict=False)
        )
        if not fits:
            raise DataError(
                f"input '{name}' wants {_shown(shape)} and the data have {_shown((None, *array.shape[1:]))}: "
                "set --size, --layout or --preset to match"
            )
        if array.dtype != dtype and not (np.issubdtype(array.dtype, np.floating) and is_float(dtype)):
            raise DataError(f"input '{name}' wants {dtype} and the data are {array.dtype}: convert them first")
        feeds[name] = array.astype(dtype, copy=False)
    batch = next(iter(inputs.values()))[1][:1]
    if batch and batch[0] is not None and len(data) < batch[0]:
        raise DataError(f"the model takes batches of {batch[0]} and there are {len(data)} samples: give more")
    return CalibrationData(feeds, data.labels, data.source)


def check_varied(data: CalibrationData) -> None:
    """Check that the samples differ, as nothing can be measured on one alone or on copies of it.

    Raises:
        DataError: they do not.
    """
    first = {name: array[:1] for name, array in data.feeds.items()}
    if all((array == first[name]).all() for feeds, _ in data.chunks(64) for name, array in feeds.items()):
        raise DataError(f"all samples are alike in {data.source}: calibrate on more images, which differ")


def is_float(dtype: np.dtype) -> bool:
    """Whether an element type is of floats, bfloat16 too."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype.name == "bfloat16"


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if d is None else str(d) for d in shape) + ")"
