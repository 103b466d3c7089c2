"""Nodes that compute s x + t with a constant s and t for each channel, as FoldAffine and MatMulToGemm fold them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from passes.graph.layers import FLOATS
from passes.graph.model import element_type

__all__ = ["affine", "is_float", "take_over"]


def affine(node: gs.Node, channels: int, rank: int, axis: int = 1) -> tuple[np.ndarray, np.ndarray] | None:
    """s and t (O,), float64, of a node that computes s x + t; None for any other node.

    For a BatchNormalization s = scale / sqrt(var + epsilon) and t = shift - s mean.

    Args:
        node: a BatchNormalization, Add, Sub or Mul; others give None.
        channels: O.
        rank: number of axes of x.
        axis: axis of the channels in x.
    """
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "BatchNormalization" and axis == 1:
        given = node.inputs[1:5]
        if node.attrs.get("training_mode", 0) or len(node.outputs) != 1 or not node.attrs.get("spatial", 1):
            return None
        if not all(isinstance(t, gs.Constant) for t in given):
            return None
        scale, shift, mean, variance = (np.asarray(t.values, np.float64) for t in given)
        s = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return s, shift - s * mean
    if node.op in ("Add", "Mul") or (node.op == "Sub" and isinstance(node.inputs[1], gs.Constant)):
        constant = next((t for t in node.inputs if isinstance(t, gs.Constant)), None)
        values = None if constant is None else _by_channel(constant, channels, rank, axis)
        if values is not None:
            return {"Add": (one, values), "Sub": (one, -values), "Mul": (values, zero)}[node.op]
    return None


def _by_channel(constant: gs.Constant, channels: int, rank: int, axis: int) -> np.ndarray | None:
    """A constant as one value for each channel (O,), float64, if it broadcasts along no other axis; else None."""
    if not is_float(constant) or len(constant.shape) > rank:
        return None
    shape = (1,) * (rank - len(constant.shape)) + tuple(constant.shape)
    if shape[axis] not in (1, channels) or any(d != 1 for d in (*shape[:axis], *shape[axis + 1 :])):
        return None
    return np.broadcast_to(np.asarray(constant.values, np.float64).reshape(-1), channels)


def take_over(node: gs.Node, reader: gs.Node) -> None:
    """Make a node write the output of its only reader, and disconnect the reader."""
    node.outputs = [reader.outputs[0]]
    reader.inputs.clear()
    reader.outputs.clear()


def is_float(tensor: gs.Constant) -> bool:
    """Whether a constant is of one of the types that layers may have."""
    return element_type(tensor).name in FLOATS
