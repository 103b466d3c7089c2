"""Gives Constant nodes tensors of their own, so that later passes do not change the caller's."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import PassResult

__all__ = ["OwnConstants"]


@dataclass(frozen=True)
class OwnConstants(ir.passes.InPlacePass):
    """Give the Constant nodes tensors that no other model shares.

    onnx-ir's LiftConstantsToInitializersPass renames the tensor, which would otherwise be that of the caller's proto.
    """

    def call(self, model: ir.Model) -> PassResult:
        """The same model, in place, and whether it has a Constant node with a tensor."""
        copied = 0
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.op_type == "Constant" and "value" in node.attributes:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(ir.to_proto(node.attributes["value"].as_tensor()))
                node.attributes["value"] = ir.AttrTensor("value", ir.serde.deserialize_tensor(tensor))
                copied += 1
        return PassResult(model, modified=bool(copied))
