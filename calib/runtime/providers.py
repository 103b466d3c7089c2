"""Execution providers of onnxruntime: their names, whether they work here, and the packages that have them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO

import onnx

from calib.runtime import ort
from passes.core.errors import SettingsError
from passes.graph.protos import first_line

__all__ = ["AUTO", "CPU", "NVIDIA", "known_provider", "parse_options", "providers", "short_name", "with_fallbacks"]

AUTO = "auto"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
SUFFIX = "ExecutionProvider"
# Providers that run on NVIDIA's GPUs. They take over from each other in this order, from any of them on.
NVIDIA = ("NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider", CUDA)
# What to install for a provider: a wheel from PyPI, or a version of onnxruntime that has to be built.
PACKAGES = {
    CUDA: "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "NvTensorRTRTXExecutionProvider": "onnxruntime-trt-rtx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
    "QNNExecutionProvider": "onnxruntime-qnn",
    "ROCMExecutionProvider": "onnxruntime-rocm",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
    "CANNExecutionProvider": "onnxruntime-cann",
    "CoreMLExecutionProvider": "onnxruntime",
}
# Short names besides that of a provider without "ExecutionProvider".
ALIASES = {
    "directml": "DmlExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "tensorrtrtx": "NvTensorRTRTXExecutionProvider",
}
# Wheels that are for one system only.
SYSTEMS = {"DmlExecutionProvider": " on Windows", "CoreMLExecutionProvider": " on macOS"}


def short_name(provider: str) -> str:
    """A provider's short name: "openvino" for "OpenVINOExecutionProvider"."""
    return provider.removesuffix(SUFFIX).lower()


def known_provider(choice: str) -> str:
    """onnxruntime's name of a provider that is given by its name or a short one; "auto" stays.

    Raises:
        SettingsError: onnxruntime knows none of this name, in the version that is installed or in other packages.
    """
    if choice.lower() == AUTO:
        return AUTO
    known = {short_name(name): name for name in (*ort.get_all_providers(), *PACKAGES)} | ALIASES
    found = known.get(short_name(choice)) or known.get(choice.lower().removesuffix(SUFFIX.lower()))
    if found is None:
        raise SettingsError(f"unknown provider '{choice}': use auto, or one that onnxruntime has here: {_here()}")
    return found


def providers(choice: str, options: Sequence[str] = ()) -> list[str]:
    """onnxruntime's provider list for a choice: the provider itself, then those that run what it cannot.

    Args:
        choice: "auto" (CUDA where a CUDA session can really be built, else the CPU), or a provider by its name in
            onnxruntime or a short one, such as "cpu", "cuda", "tensorrt", "openvino" or "dml".
        options: of the provider, "KEY=VALUE" each.

    Raises:
        SettingsError: the provider is unknown, or does not work on this machine or with these options.
    """
    name = known_provider(choice)
    given = parse_options(options)
    if name == AUTO:
        if given:
            raise SettingsError("`provider_option` is for one provider: name it with `provider`")
        name = CUDA if _start(CUDA) is None else CPU
    failed = _start(name, tuple(sorted(given.items())))
    if failed is not None:
        if given and _start(name) is None:
            said = ", ".join(options)
            raise SettingsError(f"`provider_option` {said}: {name} does not start with this ({failed}): change it")
        raise SettingsError(_missing(choice, name, failed))
    return with_fallbacks(name)


def with_fallbacks(name: str) -> list[str]:
    """onnxruntime's provider list for one provider, by onnxruntime's name: itself, then those that run what it cannot.

    Whether the provider works on this machine is not looked at.
    """
    fallbacks = [p for p in NVIDIA[NVIDIA.index(name) + 1 :] if p == CUDA] if name in NVIDIA else []
    return list(dict.fromkeys([name, *fallbacks, CPU]))


def parse_options(options: Sequence[str]) -> dict[str, str]:
    """Options of a provider by their keys.

    Raises:
        SettingsError: one is not of the form KEY=VALUE.
    """
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise SettingsError(f"`provider_option` '{option}' has no value: write KEY=VALUE, as in device_type=GPU")
        found[key] = value
    return found


def _here() -> str:
    return ", ".join(sorted(map(short_name, ort.get_available_providers())))


def _missing(choice: str, name: str, failed: str) -> str:
    """The sentence on a provider that does not work here."""
    said = f"provider '{choice}' does not work on this machine (onnxruntime {ort.__version__} cannot start {name}"
    if name in NVIDIA:
        return f"{said}): install {PACKAGES[name]} with its CUDA libraries on a machine with a GPU, or use cpu"
    if name in ort.get_available_providers():
        return f"{said}: {failed}): see what it needs, or use cpu"
    package = PACKAGES.get(name)
    if package is None:
        return f"{said}): build onnxruntime with it, or use one that is here: {_here()}"
    return (
        f"{said}): install {package}{SYSTEMS.get(name, '')} in place of the onnxruntime that is installed, "
        f"or use one that is here: {_here()}"
    )


@cache
def _start(provider: str, options: tuple[tuple[str, str], ...] = ()) -> str | None:
    """Why a session on the provider cannot be built; None if it can.

    It is tried, since onnxruntime lists providers whose libraries are absent.
    """
    if provider == CPU and not options:
        return None
    if provider not in ort.get_available_providers():
        return "it is not in this package"
    if provider in NVIDIA:
        if not _has_nvidia_driver():
            return "there is no driver of NVIDIA"
        with redirect_stdout(StringIO()):  # it prints what it does not find
            ort.preload_dlls()  # CUDA libraries from the nvidia-* wheels, where those are installed
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    wanted = [(provider, dict(options)), *([CPU] if provider != CPU else [])]
    try:
        with redirect_stdout(StringIO()):
            session = ort.InferenceSession(
                proto.SerializeToString(), session_options, providers=wanted, disable_fallback=True
            )
    except Exception as e:  # onnxruntime's exceptions share no base but Exception
        return first_line(e)
    return None if provider in session.get_providers() else "onnxruntime leaves it out"


def _has_nvidia_driver() -> bool:
    """Whether there can be a GPU: without its driver onnxruntime would write to stderr that CUDA does not start."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
