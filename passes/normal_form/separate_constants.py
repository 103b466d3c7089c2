"""Separates constants that must stay as they are from those that may be rewritten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from passes.graph.graph_pass import GraphPass
from passes.graph.model import Model
from passes.graph.naming import unused_name
from passes.graph.subgraph import outer_tensors

__all__ = ["SeparateConstants"]


@dataclass(frozen=True)
class SeparateConstants(GraphPass):
    """Give the nodes of the main graph copies of initializers that must stay as they are.

    These are initializers that are outputs of the model, or that a subgraph (an If's branch) reads.

    Ensures:
        No node of the main graph reads an initializer that is an output of the model.
    """

    def rewrite(self, model: Model) -> int:
        """Copy them in place; returns how many were copied."""
        fixed = {t.name for t in model.graph.outputs if isinstance(t, gs.Constant)}
        for node in model.graph.nodes:
            fixed.update(t.name for t in outer_tensors(node) if isinstance(t, gs.Constant))
        copies: dict[str, gs.Constant] = {}
        for node in model.graph.nodes:
            for i, tensor in enumerate(node.inputs):
                if tensor.name in fixed:
                    if tensor.name not in copies:
                        name = unused_name(model.graph, f"{tensor.name}:own")
                        copies[tensor.name] = gs.Constant(name, np.asarray(tensor.values))
                    node.inputs[i] = copies[tensor.name]
        return len(copies)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where a node of the main graph reads an initializer that is an output."""
        fixed = {v.name for v in model.graph.outputs if v.is_initializer()}
        for node in model.graph:
            if any(v is not None and v.name in fixed for v in node.inputs):
                raise PostconditionError(f"node '{node.name}' reads an initializer that is an output")
