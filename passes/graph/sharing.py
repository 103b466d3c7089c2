"""Weights that several nodes read, as in a siamese network, or in a detection head applied at several scales."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

__all__ = ["shared_weights"]

# Operators whose weight, input 1, makes them a layer.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def shared_weights(graph: gs.Graph) -> dict[str, list[gs.Node]]:
    """The weights of layers that several nodes read: all nodes that read each, in graph order, by the weight's name.

    A fixed filter is left out: a weight of a grouped Conv that is the same for every channel, such as the kernel of a
    blur. Exporters store equal tensors once, so unrelated layers may read it, and none of them would be tied to another
    by training.

    Args:
        graph: the graph; weights count as such in Conv, ConvTranspose, Gemm and MatMul.
    """
    readers: dict[str, list[gs.Node]] = {}
    weights: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(t.name for t in node.inputs if isinstance(t, gs.Constant)):
            readers.setdefault(name, []).append(node)
        if node.op in LAYERS and isinstance(node.inputs[1], gs.Constant):
            weights.setdefault(node.inputs[1].name, node.inputs[1])
    shared = {name: readers[name] for name in weights if len(readers[name]) > 1}
    return {name: nodes for name, nodes in shared.items() if not _is_fixed_filter(weights[name], nodes)}


def _is_fixed_filter(weight: gs.Constant, readers: list[gs.Node]) -> bool:
    if any(node.op != "Conv" or node.attrs.get("group", 1) == 1 for node in readers):
        return False
    values = np.asarray(weight.values)
    return math.prod(values.shape[:2]) > 1 and bool((values == values[:1, :1]).all())
