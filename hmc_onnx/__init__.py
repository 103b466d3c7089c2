"""hmc_onnx makes a trained ONNX ResNet smaller and faster, with no training: see `compress`.

The names below are imported when first used, so that `import hmc_onnx` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calib.data import CalibrationData, CalibrationDataReader, from_reader
    from hmc_onnx.finetune import FineTuning, finetune
    from hmc_onnx.inputs import load_data, preprocessing
    from hmc_onnx.pipeline import Result, apply, compress, profile
    from hmc_onnx.plans import Plan, read_plan, read_profile
    from hmc_onnx.profiles import Profile
    from hmc_onnx.settings import Settings, Target, parse_target
    from hmc_onnx.solver import solve
    from hmc_onnx.verification import Verification, verify
    from passes.errors import HmcError
    from passes.files import load, save

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
    "CalibrationData": "calib.data",
    "CalibrationDataReader": "calib.data",
    "FineTuning": "hmc_onnx.finetune.options",
    "HmcError": "passes.errors",
    "Plan": "hmc_onnx.plans",
    "Profile": "hmc_onnx.profiles",
    "Result": "hmc_onnx.pipeline",
    "Settings": "hmc_onnx.settings",
    "Target": "hmc_onnx.settings",
    "Verification": "hmc_onnx.verification",
    "apply": "hmc_onnx.pipeline",
    "compress": "hmc_onnx.pipeline",
    "from_reader": "calib.data",
    "load": "passes.files",
    "load_data": "hmc_onnx.inputs",
    "parse_target": "hmc_onnx.settings",
    "preprocessing": "hmc_onnx.inputs",
    "profile": "hmc_onnx.pipeline",
    "read_plan": "hmc_onnx.plans",
    "read_profile": "hmc_onnx.plans",
    "save": "passes.files",
    "solve": "hmc_onnx.solver",
    "verify": "hmc_onnx.verification",
}


def __getattr__(name: str) -> Any:
    if name == "finetune":  # the package of this name can be called
        return import_module("hmc_onnx.finetune")
    if name not in _HOME:
        raise AttributeError(f"module 'hmc_onnx' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
