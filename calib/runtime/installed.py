"""Imports onnxruntime. No wheel of it is a dependency of ours, as two in one environment break each other."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from passes.core.errors import HmcWarning, MissingPackageError

__all__ = ["import_onnxruntime"]

# All these wheels install the package `onnxruntime`, into the same folder.
WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-trt-rtx",
    "onnxruntime-webgpu",
    "onnxruntime-cann",
)


def import_onnxruntime() -> Any:
    """The module `onnxruntime`; warns where two wheels of it are installed side by side.

    Raises:
        MissingPackageError: no wheel is installed, or the installed files cannot be imported.
    """
    found = [name for name in WHEELS if _is_installed(name)]
    mend = f"type 'pip uninstall -y {' '.join(found)}' and then 'pip install {_wheel(found)}'"
    try:
        module = importlib.import_module("onnxruntime")
        module.InferenceSession  # noqa: B018  an uninstalled wheel may leave a folder without it
    except (ImportError, AttributeError) as e:
        if not found:
            raise MissingPackageError(f"onnxruntime is not installed: type 'pip install {_wheel(found)}'") from e
        raise MissingPackageError(f"the installed onnxruntime cannot be imported ({e}): {mend}") from e
    if len(found) > 1:
        warnings.warn(
            f"{' and '.join(found)} are installed into the same folder, where each breaks the other: {mend}",
            HmcWarning,
            stacklevel=2,
        )
    return module


def _wheel(found: list[str]) -> str:
    """The wheel to recommend: a special one that is installed, else that for GPUs (and CPUs) where it exists."""
    chosen = [name for name in found if name != "onnxruntime"]
    if chosen:
        return chosen[0]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "onnxruntime-gpu" if x86 and sys.platform in ("linux", "win32") else "onnxruntime"


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
