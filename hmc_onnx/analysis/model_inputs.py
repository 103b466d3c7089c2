"""Checks of a model, its input signature, and calibration data that fit it, from a path or from Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from types import NoneType
from typing import Any

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, from_reader
from calib.data.preprocess import Preprocess
from calib.data.readers import Selection, read, read_several
from hmc_onnx.records.images import Images
from passes.core.arguments import check_type
from passes.core.errors import DataError, ModelError
from passes.graph.external import is_external
from passes.graph.files import load
from passes.graph.model import Model, constant_value
from passes.graph.protos import check, first_line, opset_of
from passes.graph.sorting import in_topological_order

__all__ = [
    "check_evaluation_mode",
    "check_kind",
    "check_supported",
    "check_varied",
    "fit",
    "for_input",
    "is_float",
    "load_data",
    "load_selection",
    "load_supported",
    "noise",
    "preprocessing",
    "signature",
]


# Operators of quantised models, in addition to those whose names begin with QLinear.
QUANTISED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits", "QAttention", "QGemm",
    "QuantizeLinear",
}  # fmt: skip
OLDEST_OPSET = 7
# What to do instead of giving a quantised model.
FLOAT = "give the float model that it was made from, with `precision` int8 for a result in INT8"


def check_supported(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Check that a model is valid and can be compressed, and return it with its nodes in topological order.

    Raises:
        ModelError: the model is not valid ONNX, is quantised, is older than opset 7, or its external data were not
            loaded.
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


def check_kind(proto: onnx.ModelProto, instead: str = FLOAT) -> onnx.ModelProto:
    """The model itself; raises ModelError if it is older than opset 7, or quantised, with what to do `instead`."""
    for node in proto.graph.node:
        if node.op_type in QUANTISED or node.op_type.startswith("QLinear"):
            raise ModelError(f"the model is quantised ({node.op_type} node '{node.name}'): {instead}")
    opset = opset_of(proto)
    if opset is not None and opset < OLDEST_OPSET:
        raise ModelError(
            f"the model is of opset {opset}, and {OLDEST_OPSET} is the oldest that is read: "
            "export it again, or convert it with onnx.version_converter"
        )
    return proto


def check_evaluation_mode(model: Model) -> None:
    """Refuse a model, in normal form, that was exported in training mode.

    The outputs of such a model for an image depend on the other images of the batch, or on chance.

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
    """Load a model with `passes.graph.files.load`, and check it with `check_kind`."""
    return check_kind(load(path))


def signature(proto: onnx.ModelProto) -> dict[str, tuple[np.dtype, tuple[int | None, ...]]]:
    """Element type and shape (None: open) of each input that is not an initializer, by name; raises ModelError."""
    initializers = {t.name for t in proto.graph.initializer}
    return {v.name: _tensor_type(v) for v in proto.graph.input if v.name not in initializers}


def _tensor_type(value: onnx.ValueInfoProto) -> tuple[np.dtype, tuple[int | None, ...]]:
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"the model's input '{value.name}' is not a tensor: only image classifiers are supported")
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims


def preprocessing(preset: str | None = None, **options: Any) -> Preprocess:
    """A preset with some values changed; without a preset, images scaled to [0, 1] in the layout NCHW.

    Args:
        preset: "cifar10", "imagenet" or None.
        options: the fields of `hmc_onnx.records.images.Images` that say how an image becomes the input: `mean`, `std`,
            `size`, `resize`, `interpolation`, `layout`, `channels`, `scale`.

    Raises:
        SettingsError: the preset or an option is unknown, or a value does not fit.
    """
    return Images.model_validate({"preset": preset, **options}).preprocess()


def load_data(
    proto: onnx.ModelProto,
    path: str | os.PathLike[str],
    preprocess: Preprocess | Images,
    *,
    samples: int | None,
    seed: int = 0,
    split: str = "train",
) -> CalibrationData:
    """Read images for a model with one image input, or an .npz file with an array for each input.

    Args:
        proto: the model.
        path: path of the images: an .npz or .npy file, a folder of images or of one folder per class, or a folder of
            CIFAR-10 or CIFAR-100.
        preprocess: how an image becomes the model's input; or `Images`, which also says how labels become class
            numbers, and whether unreadable files are left out.
        samples: number of images to draw at random; None: all.
        seed: seed of the draw.
        split: "train" or "test", for data that have both.

    Raises:
        DataError: the data cannot be read or do not fit the model.
        SettingsError: the model takes unchanged pixels (uint8), and the preprocessing would normalise them.
    """
    check_type(samples, (Integral, NoneType), "`samples`", "give a whole number, or None for all")
    return load_selection(proto, path, preprocess, Selection(samples, seed, split))


def load_selection(
    proto: onnx.ModelProto, path: str | os.PathLike[str], preprocess: Preprocess | Images, selection: Selection
) -> CalibrationData:
    """`load_data` for images that a `Selection` draws; whether unreadable files are left out follows from `Images`."""
    check_type(proto, onnx.ModelProto, "the model", "read it with hmc_onnx.load(path)", ModelError)
    known = 'give hmc_onnx.preprocessing("imagenet"), or with mean, std and others'
    check_type(preprocess, (Preprocess, Images), "`preprocess`", known)
    inputs = signature(proto)
    options = preprocess if isinstance(preprocess, Images) else Images()
    labelling = options.labelling()
    selection = replace(selection, skip_unreadable=options.skip_unreadable)
    if len(inputs) != 1:
        return fit(proto, read_several(path, tuple(inputs), selection, labelling))
    ((name, (dtype, shape)),) = inputs.items()
    how = preprocess.preprocess() if isinstance(preprocess, Images) else preprocess
    how = for_input(how, dtype)
    data = read(path, input_name=name, input_shape=shape, preprocess=how, selection=selection, labelling=labelling)
    return fit(proto, data)


def for_input(preprocess: Preprocess, dtype: np.dtype) -> Preprocess:
    """The preprocessing with the element type of an input; for any float type it is float32, which `fit` casts."""
    return preprocess if is_float(dtype) else replace(preprocess, dtype=dtype)


def fit(
    proto: onnx.ModelProto, data: CalibrationData | Iterable[Any] | Any, samples: int | None = None
) -> CalibrationData:
    """Check that data fit the inputs of a model, and cast floats to the inputs' types.

    Args:
        proto: the model.
        data: `CalibrationData`, a `CalibrationDataReader`, or an iterable as for `from_reader`.
        samples: upper bound on the samples to take from a reader.

    Raises:
        DataError: names, shapes or element types differ from the model's, or a path was given in place of data.
    """
    inputs = signature(proto)
    if isinstance(data, str | os.PathLike):
        raise DataError(
            f"the data are given as the path '{os.fspath(data)}': read the images with hmc_onnx.load_data(model, path, "
            "preprocess, samples=...), and give what it returns"
        )
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
        if len(shape) == array.ndim + 1 and all(
            d in (None, n) for d, n in zip(shape[2:], array.shape[1:], strict=True)
        ):
            raise DataError(
                f"the data for input '{name}' have no batch axis: give arrays of shape {_shown(shape)}, "
                "such as image[None] for one image"
            )
        if not fits:
            raise DataError(
                f"input '{name}' wants {_shown(shape)} and the data have {_shown((None, *array.shape[1:]))}: "
                "set `size`, `layout` or `preset` to match"
            )
        if array.dtype != dtype and not (np.issubdtype(array.dtype, np.floating) and is_float(dtype)):
            raise DataError(f"input '{name}' wants {dtype} and the data are {array.dtype}: convert them first")
        feeds[name] = array.astype(dtype, copy=False)
    batch = next(iter(inputs.values()))[1][:1]
    if batch and batch[0] is not None and len(data) < batch[0]:
        raise DataError(f"the model takes batches of {batch[0]} and there are {len(data)} samples: give more")
    unchanged = all(feeds[name] is data.feeds[name] for name in feeds)  # its digest is then kept, too
    return data if unchanged else CalibrationData(feeds, data.labels, data.source, data.origin)


def check_varied(data: CalibrationData) -> None:
    """Check that the samples differ, because nothing can be measured on a single sample or on copies of it.

    Raises:
        DataError: all samples are equal.
    """
    first = {name: array[:1] for name, array in data.feeds.items()}
    if all((array == first[name]).all() for feeds, _ in data.chunks(64) for name, array in feeds.items()):
        raise DataError(f"all samples are alike in {data.source}: calibrate on more images, which differ")


def noise(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> CalibrationData:
    """Random feeds of the given shapes in the types of the model's inputs, for use where only sizes matter."""
    rng = np.random.default_rng(0)
    types = {name: dtype for name, (dtype, _) in signature(proto).items()}
    return CalibrationData({n: _noise(rng, s, types[n]) for n, s in shapes.items()}, None, "noise")


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random integers of the full range for 8-bit types, else random numbers in [0, 1)."""
    if dtype in (np.uint8, np.int8):
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return rng.random(shape).astype(dtype)


def is_float(dtype: np.dtype) -> bool:
    """Whether an element type is a floating-point type, including bfloat16."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype.name == "bfloat16"


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if d is None else str(d) for d in shape) + ")"
