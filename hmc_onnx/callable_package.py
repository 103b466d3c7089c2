"""Makes a package callable, so that `hmc_onnx.finetune(...)` is a call though `hmc_onnx.finetune` is a package."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let an imported package be called as a function of its own; help and signature are those of the function.

    Args:
        package: its full name.
        function: what a call runs.
    """

    class CallablePackage(ModuleType):
        __call__ = staticmethod(function)
        __signature__ = inspect.signature(function)

    sys.modules[package].__class__ = CallablePackage
