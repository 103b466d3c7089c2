"""Residual branches: where one ends, and its removal, after which the block is its shortcut."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.graph.shapes import Shapes
from passes.graph.subgraph import redirect

__all__ = ["branch_sum", "remove_branch"]


def branch_sum(graph: gs.Graph, node: gs.Node, shapes: Shapes) -> gs.Node | None:
    """The Add by which a layer, as the last of a residual branch, enters the stream; None if it is not one.

    The other term must be computed, and of the same shape, and the sum no output of the graph.
    """
    tensor = node.outputs[0]
    if len(tensor.outputs) != 1 or any(t is tensor for t in graph.outputs):
        return None
    end = tensor.outputs[0]
    if end.op != "Add" or any(t is end.outputs[0] for t in graph.outputs):
        return None
    others = [t for t in end.inputs if t is not tensor]
    if len(others) != 1 or not isinstance(others[0], gs.Variable) or not others[0].inputs:
        return None
    shape = shapes.get(tensor.name)
    return end if shape is not None and shapes.get(others[0].name) == shape else None


def remove_branch(graph: gs.Graph, node: gs.Node) -> None:
    """Take a layer for which there is a `branch_sum` out of the sum, in place; what then has no reader is left there.

    A Relu of what comes from a Relu goes, too.
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
    """Let all that reads a node's output read another tensor."""
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    redirect(output, source)
