"""Calls of model-local functions, replaced by the functions' nodes."""

from __future__ import annotations

import onnx
from onnx import inliner

from passes.graph.protos import copy_fields, large, without_weights

__all__ = ["inline_functions"]


def inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose calls of model-local functions are replaced by the functions' nodes, by ONNX's own inliner.

    Functions of another version of the default operator set are converted to the model's; what ONNX cannot convert
    stays a call. A model without functions is returned as it is; the model given is not changed, and its weights are
    not copied.
    """
    if not proto.functions:
        return proto
    inlined = _inlined(without_weights(proto, large(proto)))
    result = onnx.ModelProto()
    copy_fields(inlined, result, skip={"graph"})
    copy_fields(inlined.graph, result.graph, skip={"input", "initializer"})
    result.graph.input.extend(proto.graph.input)
    result.graph.initializer.extend(proto.graph.initializer)
    kept = {t.name for t in proto.graph.initializer}
    result.graph.initializer.extend(t for t in inlined.graph.initializer if t.name not in kept)
    return result


def _inlined(light: onnx.ModelProto) -> onnx.ModelProto:
    try:
        typed = onnx.shape_inference.infer_shapes(light)  # conversion needs the types of all tensors
        inlined = inliner.inline_local_functions(typed, convert_version=True)
    except RuntimeError:
        inlined = inliner.inline_local_functions(light)
    del inlined.graph.value_info[:]
    inlined.graph.value_info.extend(light.graph.value_info)
    return inlined
