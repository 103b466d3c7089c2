"""Residual sums: where a layer's output is added to the residual stream, and what the other term is."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from passes.graph.shapes import Shapes

__all__ = ["ResidualSum", "is_sum", "residual_sum"]


@dataclass(frozen=True)
class ResidualSum:
    """The sum that a layer's output enters, as it is or with its axes permuted.

    Attributes:
        add: the Add.
        entry: the term that comes from the layer: its output, or that behind Transposes.
        other: the other term, of the same shape.
        order: permutation that brings the axes of `other` into the order of the layer's output (for np.transpose).
        direct: whether `entry` is the layer's output itself.
        removable: whether the layer can be taken out, so that `other` replaces the sum. For this the layer's output
            enters directly, `other` is not an input of the model, and neither the layer's output nor the sum is an
            output of the model.
    """

    add: gs.Node
    entry: gs.Tensor
    other: gs.Tensor
    order: tuple[int, ...]
    direct: bool
    removable: bool


def is_sum(node: gs.Node) -> bool:
    """Whether a node adds tensors none of which is an initializer."""
    return node.op == "Add" and not any(isinstance(t, gs.Constant) for t in node.inputs)


def residual_sum(graph: gs.Graph, layer: gs.Node, shapes: Shapes) -> ResidualSum | None:
    """The residual sum that is the only reader of a layer's output; None if there is none.

    Transposes may stand in between, as where an exporter adds in NHWC. The other term must be another tensor of the
    same shape: one that is broadcast is a bias, not a residual stream.

    Args:
        graph: the graph of the layer.
        layer: a Conv, ConvTranspose or Gemm.
        shapes: shapes of all tensors by name.
    """
    output = layer.outputs[0]
    shape = shapes.get(output.name)
    if shape is None:
        return None
    axes, entry = list(range(len(shape))), output
    while len(entry.outputs) == 1 and entry.outputs[0].op == "Transpose":
        turn = entry.outputs[0]
        axes = [axes[axis] for axis in turn.attrs.get("perm", range(len(axes))[::-1])]
        entry = turn.outputs[0]
    if len(entry.outputs) != 1 or not is_sum(entry.outputs[0]):
        return None
    add = entry.outputs[0]
    others = [t for t in add.inputs if t is not entry]
    if len(others) != 1 or shapes.get(others[0].name) != shapes.get(entry.name):
        return None
    outputs = {id(t) for t in graph.outputs}
    removable = entry is output and not {id(output), id(add.outputs[0])} & outputs and bool(others[0].inputs)
    order = tuple(axes.index(axis) for axis in range(len(axes)))
    return ResidualSum(add, entry, others[0], order, entry is output, removable)
