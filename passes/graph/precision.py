"""Converts a bfloat16 or float64 model, for which a runtime may have no kernels, to float32: for measurements only."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from passes.graph.external import brought_in
from passes.graph.protos import EXTERNAL_DATA_THRESHOLD, byte_size
from passes.graph.sparse import inner_graphs

__all__ = ["in_float32"]

OTHERS = (TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Attributes that name an element type: of Cast, and of EyeLike, RandomNormal and their like.
TYPE_ATTRIBUTES = ("to", "dtype")


def in_float32(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with float32 in place of bfloat16 and float64 throughout.

    Returns:
        The copy; None if the model has neither type, or is too large for one protobuf message.
    """
    if byte_size(proto) >= EXTERNAL_DATA_THRESHOLD:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(brought_in(proto))
    changed = False
    for owner in (copy.graph, *copy.functions):
        changed |= _convert(owner)
    return copy if changed else None


def _convert(owner: onnx.GraphProto | onnx.FunctionProto) -> bool:
    """Convert a graph or a function and what is inside it, in place; returns whether anything changed."""
    changed = False
    if isinstance(owner, onnx.GraphProto):
        for tensor in owner.initializer:
            changed |= _convert_tensor(tensor)
        for value in (*owner.input, *owner.output, *owner.value_info):
            if value.type.tensor_type.elem_type in OTHERS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                changed = True
    for attribute in (a for node in owner.node for a in node.attribute):
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in OTHERS:
            attribute.i = TensorProto.FLOAT
            changed = True
        if attribute.HasField("t"):
            changed |= _convert_tensor(attribute.t)
        for inner in inner_graphs(attribute):
            changed |= _convert(inner)
    return changed


def _convert_tensor(tensor: TensorProto) -> bool:
    if tensor.data_type not in OTHERS:
        return False
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return True
