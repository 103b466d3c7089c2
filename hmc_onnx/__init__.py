"""hmc_onnx makes a trained ONNX ResNet smaller and faster, with no training: see `compress`.

The names below are imported when first used, so that `import hmc_onnx` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hmc_onnx.own_modules import check_own_modules

if TYPE_CHECKING:
    from calib.data.calibration import CalibrationData, CalibrationDataReader, from_reader
    from hmc_onnx.analysis.model_inputs import load_data, preprocessing
    from hmc_onnx.api import Result, apply, compress, profile
    from hmc_onnx.comparison.verification import Verification, verify
    from hmc_onnx.finetune import FineTuning, finetune
    from hmc_onnx.planning.program import solve
    from hmc_onnx.records.plan import Plan, read_plan, read_profile
    from hmc_onnx.records.profile import Profile
    from hmc_onnx.records.settings import Settings, Target, parse_target
    from passes.core.errors import HmcError
    from passes.graph.files import load, save

    __version__: str

__all__ = [
    "CalibrationData",
    "CalibrationDataReader",
    "FineTuning",
    "HmcError",
    "Plan",
    "Profile",
    "Result",
    "Settings",
    "Target",
    "Verification",
    "__version__",
    "apply",
    "compress",
    "finetune",
    "from_reader",
    "load",
    "load_data",
    "parse_target",
    "preprocessing",
    "profile",
    "read_plan",
    "read_profile",
    "save",
    "solve",
    "verify",
]

_HOME = {
    "CalibrationData": "calib.data.calibration",
    "CalibrationDataReader": "calib.data.calibration",
    "FineTuning": "hmc_onnx.finetune.options",
    "HmcError": "passes.core.errors",
    "Plan": "hmc_onnx.records.plan",
    "Profile": "hmc_onnx.records.profile",
    "Result": "hmc_onnx.api",
    "Settings": "hmc_onnx.records.settings",
    "Target": "hmc_onnx.records.settings",
    "Verification": "hmc_onnx.comparison.verification",
    "apply": "hmc_onnx.api",
    "compress": "hmc_onnx.api",
    "from_reader": "calib.data.calibration",
    "load": "passes.graph.files",
    "load_data": "hmc_onnx.analysis.model_inputs",
    "parse_target": "hmc_onnx.records.settings",
    "preprocessing": "hmc_onnx.analysis.model_inputs",
    "profile": "hmc_onnx.api",
    "read_plan": "hmc_onnx.records.plan",
    "read_profile": "hmc_onnx.records.plan",
    "save": "passes.graph.files",
    "solve": "hmc_onnx.planning.program",
    "verify": "hmc_onnx.comparison.verification",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("hmc-onnx")
    if name != "finetune" and name not in _HOME:
        raise AttributeError(f"module 'hmc_onnx' has no attribute '{name}'")
    check_own_modules()
    if name == "finetune":  # the package of this name can be called
        return import_module("hmc_onnx.finetune")
    return getattr(import_module(_HOME[name]), name)
