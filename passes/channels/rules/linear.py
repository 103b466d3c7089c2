"""Gemm and MatMul."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, Rule, register
from passes.channels.rules.parameters import is_given, weight
from passes.channels.tracing import Tracer

__all__: list[str] = []


@register("Gemm")
class Gemm(Rule):
    """Ends the channels along the inner axis of A and begins new ones; B must be constant, and C is pruned with B."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """y = alpha A B + beta C, A (N, I) or with transA (I, N), B (I, O) or with transB (O, I)."""
        matrix = weight(node, 1)
        inward, outward = (1, 0) if node.attrs.get("transB", 0) else (0, 1)
        x = tracer.along(node.inputs[0], 0 if node.attrs.get("transA", 0) else 1)
        ids = tracer.fresh(matrix.shape[outward])
        if is_given(node, 2):
            bias = weight(node, 2).shape
            if len(bias) > 0 and bias[-1] == len(ids):
                tracer.slot(node, 2, len(bias) - 1, "follows", ids)
        if x is not None:
            tracer.slot(node, 1, inward, "consumes", x)
        tracer.slot(node, 1, outward, "produces", ids)
        tracer.emit(node.outputs[0], 1, ids)


@register("MatMul")
class MatMul(Rule):
    """Ends the channels along the inner axis and begins new ones, where one side is a constant matrix."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """x (…, I) @ W (I, O), or W (O, I) @ x (…, I, N)."""
        a, b = node.inputs
        constant = isinstance(b, gs.Constant)
        x, matrix = (a, b) if constant else (b, a)
        if not isinstance(matrix, gs.Constant) or len(matrix.shape) != 2:
            raise Closed("multiplies by something other than a constant matrix")
        rank = tracer.rank(x)
        if rank < 2:
            raise Closed("multiplies a vector")
        index, inward, axis = (1, 0, rank - 1) if constant else (0, 1, rank - 2)
        ids = tracer.along(x, axis)
        if ids is not None:
            tracer.slot(node, index, inward, "consumes", ids)
        made = tracer.fresh(matrix.shape[1 - inward])
        tracer.slot(node, index, 1 - inward, "produces", made)
        tracer.emit(node.outputs[0], axis, made)
