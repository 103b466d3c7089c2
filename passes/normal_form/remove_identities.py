"""Removes Identity nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from passes.graph.graph_pass import GraphPass
from passes.graph.model import Model
from passes.graph.subgraph import redirect

__all__ = ["RemoveIdentities"]


@dataclass(frozen=True)
class RemoveIdentities(GraphPass):
    """Remove the Identity nodes of the main graph, whose readers then read the Identity's input.

    onnx-ir's own pass is not used: it loses the output of an If's branch that passes on a tensor from outside, and one
    of two outputs that are the same tensor.

    Ensures:
        Every Identity that is left reads an input, a constant or an output of the model, and gives an output.
    """

    def rewrite(self, model: Model) -> int:
        """Remove them in place; returns how many."""
        outputs = {t.name for t in model.graph.outputs}
        removed = 0
        for node in [n for n in model.graph.nodes if n.op == "Identity"]:
            x, y = node.inputs[0], node.outputs[0]
            kept, dropped = x, y
            if y.name in outputs:
                if not x.inputs or x.name in outputs:
                    continue
                kept, dropped = y, x
            node.inputs.clear()
            node.outputs.clear()
            redirect(dropped, kept)
            if kept is y:
                maker = x.inputs[0]
                maker.outputs = [y if t is x else t for t in maker.outputs]
            removed += 1
        model.graph.cleanup()
        return removed

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where an Identity is left that could have gone."""
        for node in model.graph:
            if node.op_type == "Identity" and node.domain == "" and not node.outputs[0].is_graph_output():
                raise PostconditionError(f"Identity node '{node.name}' is left")
