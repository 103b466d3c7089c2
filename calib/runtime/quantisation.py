"""Models in INT8: quantised with onnxruntime.quantization to QDQ form, weights per channel.

QDQ form keeps the float operators and puts pairs of QuantizeLinear and DequantizeLinear around them; onnxruntime and
TensorRT fuse these into INT8 kernels. What the target wants differs: onnxruntime on CPUs runs activations of uint8 with
a zero point; TensorRT takes int8 without one, and biases in float.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import cpuinfo
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from passes.core.errors import ModelError
from passes.graph.protos import first_line

__all__ = ["OLDEST_OPSET", "Calibration", "FeedReader", "quantise", "quantise_for_timing", "raise_opset", "saturates"]

Calibration = Literal["minmax", "entropy", "percentile"]

# Per-channel QuantizeLinear and DequantizeLinear exist from here on.
OLDEST_OPSET = 13
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Batches whose activations are held at once while ranges are found by histograms.
HELD_BATCHES = 2
# A range for tensors of models that are only timed: what it is does not matter to the time.
ANY_RANGE = 4.0


def quantise(
    proto: onnx.ModelProto,
    batches: Sequence[Mapping[str, np.ndarray]],
    calibration: Calibration = "minmax",
    provider: str = "CPUExecutionProvider",
    in_float: Collection[str] = (),
) -> onnx.ModelProto:
    """A model in INT8 that has the same inputs and outputs.

    Args:
        proto: the model, of opset 13 or newer, its BatchNormalizations folded; not changed.
        batches: feeds on which the ranges of activations are found.
        calibration: how they are found.
        provider: onnxruntime's name of the one that will run it.
        in_float: names of nodes to leave in float.

    Raises:
        ModelError: the quantiser fails, or an activation has no finite range on these feeds.
    """
    options = _for(provider) | {"CalibStridedMinMax": HELD_BATCHES}
    whole = len(batches) // HELD_BATCHES * HELD_BATCHES or 1
    if whole < HELD_BATCHES:
        options.pop("CalibStridedMinMax")
    with TemporaryDirectory(prefix="hmc_onnx-") as folder:
        return _quantised(proto, Path(folder), provider, in_float, options | _calibrating(calibration, batches[:whole]))


def quantise_for_timing(
    proto: onnx.ModelProto, provider: str = "CPUExecutionProvider", in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """A model in INT8 whose activations have arbitrary ranges: it takes the time that a calibrated one does."""
    tensors = {name for node in proto.graph.node for name in (*node.input, *node.output) if name}
    bounds = (np.array(-ANY_RANGE, np.float32), np.array(ANY_RANGE, np.float32))
    ranges = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(tensors, bounds))
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    try:
        with _quiet():  # what `quantize_static` does behind its calibration; ranges can be given to it from 1.31 on
            quantiser = QDQQuantizer(
                save_and_reload_model_with_shape_infer(own),
                True,
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
    """The model itself, or one converted to the oldest opset that can be quantised per channel.

    Raises:
        ModelError: onnx cannot convert it.
    """
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if opset >= OLDEST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as e:  # the converter's errors share no base
        raise ModelError(
            f"INT8 needs opset {OLDEST_OPSET}, the model is of opset {opset}, and onnx cannot convert it "
            f"({first_line(e)}): export it again with a newer opset"
        ) from e


class FeedReader:
    """Feeds in the form of onnxruntime's CalibrationDataReader, which can be told to give a part of them."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give the batches from one index up to another."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        return next(self._left, None)


def _for(provider: str) -> dict[str, Any]:
    """Options of the quantiser that a provider wants."""
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
        raise ModelError(f"onnxruntime's quantiser cannot quantise the model: {first_line(e)}") from e


@cache
def saturates() -> bool:
    """Whether this processor adds pairs of products of 8 bits in 16, which overflow with weights of full range.

    x86 processors without VNNI or AMX do; weights of 7 bits keep them right (onnxruntime's `reduce_range`).
    """
    flags = set(cpuinfo.get_cpu_info().get("flags", []))
    return "avx2" in flags and not flags & {"avx512_vnni", "avx512vnni", "avx_vnni", "amx_int8"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it the quantiser's advice to pre-process, which the normal form has done, is not logged."""

    def other(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)
