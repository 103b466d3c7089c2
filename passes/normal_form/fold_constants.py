"""Constant folding by onnxscript."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnxscript import optimizer

from passes.graph.quiet import quiet_folding

__all__ = ["FoldConstants"]


@dataclass(frozen=True)
class FoldConstants(ir.passes.InPlacePass):
    """Replace nodes by their results where onnxscript can compute these from constants.

    ConstantOfShape is folded too: it makes the zeros with which option-A shortcuts are padded. BatchNormalization is
    left to `FoldRemainingConstants`, as ONNX's reference implementation of it is wrong below opset 14. An Identity of a
    weight is left to `RemoveIdentities`: torch's exporter writes one for each further use of a shared weight, and its
    result would be a copy.

    Attributes:
        input_size_limit: a node that reads a constant of more elements is not folded.
    """

    input_size_limit: int = 2**31

    def call(self, model: ir.Model) -> PassResult:
        """The same model, in place, and whether anything was folded."""
        with quiet_folding():
            result = optimizer.fold_constants(model, input_size_limit=self.input_size_limit, should_fold=_also)
        return PassResult(model, modified=result.modified)


def _also(node: ir.Node) -> bool | None:
    """Whether to fold a node; None leaves the decision to onnxscript."""
    if node.op_type == "Identity" and node.domain == "" and _is_weight(node.inputs[0]):
        return False
    return {"ConstantOfShape": True, "BatchNormalization": False}.get(node.op_type)


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is an initializer of one axis or more, of floating-point numbers."""
    tensor = None if value is None else value.const_value
    return tensor is not None and len(tensor.shape) > 0 and tensor.dtype.is_floating_point()
