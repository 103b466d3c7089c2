"""Unique names for nodes, by which plans, reports and passes refer to them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from passes.graph.graph_pass import GraphPass, require_unique_names
from passes.graph.model import Model

__all__ = ["NameNodes"]


@dataclass(frozen=True)
class NameNodes(GraphPass):
    """Give every node of the main graph a unique name.

    A node keeps its own name; where that is missing or taken it is named after its operator and first output.

    Ensures:
        Each node of the main graph has a name of its own.
    """

    def rewrite(self, model: Model) -> int:
        """Name the nodes in place; returns how many got a new name."""
        taken = {node.name for node in model.graph.nodes}
        kept: set[str] = set()
        named = 0
        for node in model.graph.nodes:
            if node.name and node.name not in kept:
                kept.add(node.name)
                continue
            wanted = node.name or f"{node.op}:{node.outputs[0].name if node.outputs else 'no output'}"
            name, count = wanted, 1
            while name in taken:
                count += 1
                name = f"{wanted}#{count}"
            taken.add(name)
            node.name = name
            named += 1
        return named

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where two nodes share a name or one has none."""
        try:
            require_unique_names(model)
        except PreconditionError as e:
            raise PostconditionError(str(e)) from e
