"""What is used of onnxruntime.quantization; its import adds a folder to `sys.path`, which is taken off again."""

import sys

_path = list(sys.path)

from onnxruntime.quantization import (  # noqa: E402
    CalibrationMethod,
    QDQQuantizer,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_static,
)
from onnxruntime.quantization.calibrate import TensorsData  # noqa: E402
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer  # noqa: E402
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry  # noqa: E402

sys.path[:] = _path

__all__ = [
    "CalibrationMethod",
    "QDQQuantizer",
    "QDQRegistry",
    "QLinearOpsRegistry",
    "QuantFormat",
    "QuantType",
    "TensorsData",
    "create_calibrator",
    "quantize_static",
    "save_and_reload_model_with_shape_infer",
]
