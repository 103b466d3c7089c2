"""Replaces calls of model-local functions by the functions' nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import inliner
from onnx_ir.passes import PassResult

from passes.graph.carrying import returned, serialised
from passes.graph.protos import copy_fields, large, without_weights

__all__ = ["InlineFunctions", "inline_functions"]


@dataclass(frozen=True)
class InlineFunctions(ir.passes.FunctionalPass):
    """Replace each call of a model-local function by the function's nodes, by ONNX's own inliner.

    onnx-ir's own pass is not used: it does not convert a function that imports another version of the default operator
    set than the model. Calls of functions that ONNX cannot convert either stay as they are.
    """

    def call(self, model: ir.Model) -> PassResult:
        """The model with its calls replaced, a new object, and whether there were any functions."""
        given = serialised(model)
        done = inline_functions(given)
        return PassResult(returned(done, given, model), modified=done is not given)


def inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`InlineFunctions` on a proto. The proto given is not changed, and its weights are shared with the result.

    A model without functions is returned as it is.
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
