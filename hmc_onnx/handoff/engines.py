"""How the TensorRT provider of onnxruntime is to build and keep its engines."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from hmc_onnx.handoff.served import Served
from passes.core.errors import SettingsError

__all__ = ["enabled", "engine_options", "kept_apart", "largest_batch", "profiles"]


def engine_options(served: Served, folder: str) -> dict[str, str]:
    """The provider's options, by onnxruntime's names; those that were given go before what is said here.

    Cached engines are found by the names of the model's nodes, and not by its weights or shapes (issue 32254 of
    onnxruntime). A compressed model has the original's names, so its engines are kept under a prefix of their own, in
    which the model's digest is.

    Args:
        served: the model.
        folder: where engines are kept.

    Raises:
        SettingsError: an option that was given keeps engines under a name that another model's may have.
    """
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_engine_cache_prefix": f"{served.name}_{served.digest}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }
    types = {t.data_type for t in served.proto.graph.initializer}
    if onnx.TensorProto.FLOAT16 in types:
        options["trt_fp16_enable"] = "1"
    if any(node.op_type == "QuantizeLinear" for node in served.proto.graph.node):
        options["trt_int8_enable"] = "1"
    options |= {f"trt_profile_{which}_shapes": shapes for which, shapes in profiles(served).items()}
    options |= served.provider_options
    if not kept_apart(options, served.digest):
        given = options.get("trt_engine_cache_prefix", "")
        raise SettingsError(
            f"`provider_option` trt_engine_cache_prefix={given}: engines are found by their names alone, so the prefix "
            f"has to end in the model's digest: leave it out, or give {given or served.name}_{served.digest}"
        )
    return options


def enabled(options: Mapping[str, str], key: str) -> bool:
    """Whether an option of the provider that is 0 or 1 is on; it is off where it is not given."""
    return options.get(key, "0") not in ("0", "False", "false")


def kept_apart(options: Mapping[str, str], digest: str) -> bool:
    """Whether engines, where they are kept, are named after the model of this short digest."""
    kept = enabled(options, "trt_engine_cache_enable")
    return not kept or options.get("trt_engine_cache_prefix", "").endswith(f"_{digest}")


def profiles(served: Served) -> dict[str, str]:
    """The smallest ("min"), the planned ("opt") and the largest ("max") shapes of the inputs; none where all are fixed.

    They are written as onnxruntime and trtexec take them: "input:8x3x224x224", with commas between inputs.
    """
    if all(None not in dims for dims in served.inputs.values()):
        return {}
    least = 1 if served.open else served.batch
    numbers = {"min": least, "opt": served.batch, "max": served.batch}
    return {which: _written(served.shapes_at(batch)) for which, batch in numbers.items()}


def largest_batch(options: Mapping[str, str]) -> int | None:
    """The most images that an engine of these options takes at once; None where the model fixes their number."""
    shape = options.get("trt_profile_max_shapes", "").partition(",")[0].rpartition(":")[2]
    first = shape.partition("x")[0]
    return int(first) if first.isdecimal() else None


def _written(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
