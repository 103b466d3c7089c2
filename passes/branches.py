"""Removes a residual branch, so that only the shortcut of its block is left."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from passes.core.errors import ModelError
from passes.graph.graph_pass import GraphPass, require_nodes
from passes.graph.model import Model
from passes.graph.subgraph import redirect
from passes.residual import residual_sum

__all__ = ["RemoveBranch", "remove_branch"]


@dataclass(frozen=True)
class RemoveBranch(GraphPass):
    """Remove the residual branch that ends with a layer: the sum becomes its other term.

    The outputs are those of the model with the layer's weights and bias set to zero. A Relu that then reads another
    Relu is removed, too.

    Attributes:
        node: name of the layer, the last of its branch.

    Requires:
        Each node has a name of its own, and `node` is one of them. It is the last layer of a branch that can be
        removed: see `passes.residual.ResidualSum`.

    Ensures:
        The layer is gone.
    """

    node: str

    def rewrite(self, model: Model) -> int:
        """Remove the branch in place, and all nodes that nothing reads then; returns 1.

        Raises:
            ModelError: the layer is not in the model, or does not end a branch that can be removed.
        """
        layer = next((n for n in model.graph.nodes if n.name == self.node), None)
        found = None if layer is None else residual_sum(model.graph, layer, model.shapes)
        if layer is None or found is None or not found.removable:
            raise ModelError(f"'{self.node}' is no layer that ends a residual branch which can be removed")
        remove_branch(model.graph, layer)
        model.tidy()
        return 1

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError unless the layer is in the model, under a name that no other node has."""
        super().requires(model)
        require_nodes(model, [self.node])

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError if the layer is still there."""
        if any(node.name == self.node for node in model.graph):
            raise PostconditionError(f"node '{self.node}' is still there")


def remove_branch(graph: gs.Graph, node: gs.Node) -> None:
    """Take a layer whose `residual_sum` is removable out of the sum, in place.

    Nodes that nothing reads then are left in the graph. A Relu that then reads another Relu is removed, too.
    """
    tensor = node.outputs[0]
    end = tensor.outputs[0]
    shortcut = next(t for t in end.inputs if t is not tensor)
    _bypass(end, shortcut)
    if shortcut.inputs[0].op == "Relu":
        for reader in [n for n in list(shortcut.outputs) if n.op == "Relu"]:
            if not any(t is reader.outputs[0] for t in graph.outputs):
                _bypass(reader, shortcut)


def _bypass(node: gs.Node, source: gs.Tensor) -> None:
    """Make all readers of a node's output read `source` instead, and disconnect the node."""
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    redirect(output, source)
