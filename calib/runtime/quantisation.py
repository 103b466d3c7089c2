"""Models in INT8: quantised with onnxruntime.quantization to QDQ form, weights per channel.

QDQ form keeps the float operators and puts pairs of QuantizeLinear and DequantizeLinear around them; onnxruntime and
TensorRT fuse these into INT8 kernels. Targets differ: onnxruntime on CPUs runs uint8 activations with a zero point;
TensorRT takes symmetric int8 activations, and biases in float.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx

from calib.data.calibration import length
from calib.runtime.processor import instructions
from calib.runtime.quantiser import (
    CalibrationMethod,
    QDQQuantizer,
    QDQRegistry,
    QLinearOpsRegistry,
    QuantFormat,
    QuantType,
    TensorsData,
    quantize_static,
    save_and_reload_model_with_shape_infer,
)
from passes.core.errors import ModelError
from passes.graph.protos import first_line, opset_of

__all__ = [
    "OLDEST_OPSET",
    "Calibration",
    "FeedReader",
    "activation_step",
    "quantise",
    "quantise_for_timing",
    "raise_opset",
    "saturates",
    "weight_levels",
]

Calibration = Literal["minmax", "entropy", "percentile"]

# The first opset with per-channel QuantizeLinear and DequantizeLinear.
OLDEST_OPSET = 13
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Batches whose activations the calibrator holds at once.
HELD_BATCHES = 2
# Half-width of the range of all tensors in models that are only timed; the time does not depend on it.
ANY_RANGE = 4.0
EXTREME = (
    "on the calibration images is too large or too small for INT8: leave out images with extreme values, or prepare "
    "them as in training"
)


def quantise(
    proto: onnx.ModelProto,
    batches: Sequence[Mapping[str, np.ndarray]],
    calibration: Calibration = "minmax",
    provider: str = "CPUExecutionProvider",
    in_float: Collection[str] = (),
) -> onnx.ModelProto:
    """Quantise a model to INT8; the names and types of its inputs and outputs stay the same.

    Args:
        proto: the model, of opset 13 or newer, with its BatchNormalizations folded; it is not changed.
        batches: feeds from which the ranges of the activations are found.
        calibration: method by which they are found.
        provider: onnxruntime's name of the execution provider that will run the model.
        in_float: names of the nodes to leave in float.

    Raises:
        ModelError: the quantiser fails, or an activation has no finite range on these feeds.
    """
    options, whole = _for(provider), batches
    if calibration != "minmax":  # histograms are made of feeds of one size
        whole = batches = [feeds for feeds in batches if length(feeds) == length(batches[0])]
    if len(batches) >= HELD_BATCHES:
        options |= {"CalibStridedMinMax": HELD_BATCHES}
        whole = [*batches, *batches[: -len(batches) % HELD_BATCHES]]  # the first again, which changes no range
    with TemporaryDirectory(prefix="hmc_onnx-") as folder:
        made = _quantised(proto, Path(folder), provider, in_float, options | _calibrating(calibration, whole))
    _check_scales(made)
    return made


def _check_scales(quantised: onnx.ModelProto) -> None:
    """Raise ModelError where a tensor's range on the feeds was such that its scale is 0, infinite or no number."""
    tensors = {t.name: t for t in quantised.graph.initializer}
    for node in quantised.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in tensors:
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
            if not (np.isfinite(scale) & (scale > 0)).all():
                raise ModelError(f"the range of '{node.input[0]}' {EXTREME}")


def quantise_for_timing(
    proto: onnx.ModelProto,
    provider: str = "CPUExecutionProvider",
    in_float: Collection[str] = (),
    per_channel: bool = True,
) -> onnx.ModelProto:
    """An INT8 model whose activations have arbitrary ranges, only to be timed: it takes as long as a calibrated one.

    Args:
        proto, provider, in_float: as for `quantise`.
        per_channel: whether each channel of a weight has a scale of its own. With one scale for each weight, the model
            is made in half the time, and takes up to 2 % less to run.
    """
    tensors = {name for node in proto.graph.node for name in (*node.input, *node.output) if name}
    bounds = (np.array(-ANY_RANGE, np.float32), np.array(ANY_RANGE, np.float32))
    ranges = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(tensors, bounds))
    try:
        with _quiet():  # what `quantize_static` does behind its calibration; ranges can be given to it from 1.31 on
            quantiser = QDQQuantizer(
                save_and_reload_model_with_shape_infer(proto),  # which copies it
                per_channel,
                _seven_bits(provider),
                QuantType.QInt8,
                _activations(provider),
                ranges,
                [],
                list(in_float),
                sorted({*QLinearOpsRegistry, *QDQRegistry}),
                _for(provider),
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        return quantiser.model.model
    except Exception as e:  # the quantiser's errors share no base
        raise ModelError(f"onnxruntime's quantiser cannot quantise the model: {first_line(e)}") from e


def raise_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself if its opset can be quantised per channel, else a copy converted to `OLDEST_OPSET`.

    Raises:
        ModelError: onnx cannot convert it.
    """
    opset = opset_of(proto)
    if opset is None or opset >= OLDEST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as e:  # the converter's errors share no base
        raise ModelError(
            f"INT8 needs opset {OLDEST_OPSET}, the model is of opset {opset}, and onnx cannot convert it "
            f"({first_line(e)}): export it again with a newer opset"
        ) from e


class FeedReader:
    """Feeds with the interface of onnxruntime's CalibrationDataReader; `set_range` selects a part of them."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restart at the batch `start_index`, and end before `end_index`."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        return next(self._left, None)


def _for(provider: str) -> dict[str, Any]:
    """Extra options of the quantiser that an execution provider needs."""
    if provider == "CPUExecutionProvider":
        return {}
    return {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def _activations(provider: str) -> QuantType:
    return QuantType.QUInt8 if provider == "CPUExecutionProvider" else QuantType.QInt8


def _seven_bits(provider: str) -> bool:
    """Whether weights have seven bits, as sums of products of eight would overflow."""
    return provider == "CPUExecutionProvider" and saturates()


def _calibrating(calibration: Calibration, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    return {"calibration_data_reader": FeedReader(batches), "calibrate_method": _METHODS[calibration]}


_ARGUMENTS = ("calibration_data_reader", "calibrate_method")


def _quantised(
    proto: onnx.ModelProto, folder: Path, provider: str, in_float: Collection[str], options: dict[str, Any]
) -> onnx.ModelProto:
    given = {name: options.pop(name) for name in _ARGUMENTS if name in options}
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    try:
        with _quiet():
            quantize_static(
                own,
                folder / "quantised.onnx",
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=_seven_bits(provider),
                activation_type=_activations(provider),
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(in_float),
                extra_options=options,
                **given,
            )
        return onnx.load(folder / "quantised.onnx")
    except Exception as e:  # the quantiser's errors share no base
        if "scale issue" in str(e):  # which the quantiser says of ranges that are infinite
            raise ModelError(f"the range of an activation {EXTREME}") from e
        raise ModelError(f"onnxruntime's quantiser cannot quantise the model: {first_line(e)}") from e


def activation_step(low: float, high: float, provider: str) -> float:
    """The step of the grid on which activations between `low` (at most 0) and `high` (at least 0) are rounded."""
    if _activations(provider) is QuantType.QUInt8:
        return (high - low) / 255
    return max(-low, high) / 127


def weight_levels(provider: str) -> int:
    """The largest integer that the quantiser makes of a weight; the smallest is its opposite."""
    return 64 if provider == "CPUExecutionProvider" and saturates() else 127


def saturates() -> bool:
    """Whether this processor adds pairs of 8-bit products in 16 bits, which saturate for weights of the full range.

    x86 processors without VNNI or AMX do so; 7-bit weights avoid it (onnxruntime's `reduce_range`).
    """
    flags = instructions()
    return "avx2" in flags and not flags & {"avx512_vnni", "avx512vnni", "avx_vnni", "amx_int8"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantiser's advice to pre-process the model, which the normal form has done, and what it prints.

    The calibrators print to standard output, where a command may write JSON.
    """

    def other(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.removeFilter(other)
