"""What can be computed from constants, computed."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnxscript import optimizer

__all__ = ["FoldConstants"]


@dataclass(frozen=True)
class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's constant folding, for ConstantOfShape too, which makes the pads of option-A shortcuts.

    BatchNormalization is left to `FoldRemainingConstants`: its reference implementation errs below opset 14.

    Attributes:
        input_size_limit: elements of the largest constant that is folded.
    """

    input_size_limit: int = 2**31

    def call(self, model: ir.Model) -> PassResult:
        """The same model, in place, and whether anything was folded."""
        result = optimizer.fold_constants(model, input_size_limit=self.input_size_limit, should_fold=_also)
        return PassResult(model, modified=result.modified)


def _also(node: ir.Node) -> bool | None:
    """Whether to fold a node; None leaves the decision to onnxscript."""
    return {"ConstantOfShape": True, "BatchNormalization": False}.get(node.op_type)
