"""Shapes that a graph computes from other shapes become constants, by onnxscript."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from passes.graph.quiet import quiet_folding

__all__ = ["with_computed_shapes"]


def with_computed_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which what follows from the shapes alone is constant."""
    module = ir.from_proto(proto)
    with quiet_folding():
        fold_constants(module, onnx_shape_inference=True)
    return ir.to_proto(module)
