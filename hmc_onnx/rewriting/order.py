"""The order in which layers are fitted, where nodes share their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from passes.graph.subgraph import node_inputs

__all__ = ["repair_order"]


def repair_order(graph: gs.Graph, layers: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The layers in the order in which they are fitted, each with the nodes whose inputs depend on no later layer.

    That is graph order, as long as each layer has one node. A layer of several nodes waits for the layers before all of
    them. Where layers wait for each other, or a layer for itself, the first of them in graph order does not wait.

    Args:
        graph: the graph, whose nodes are in topological order; nodes of a layer may be missing.
        layers: names of the nodes that apply each layer, by the layer's name, in graph order.
    """
    if all(len(nodes) == 1 for nodes in layers.values()):
        return {name: list(nodes) for name, nodes in layers.items()}
    bit = {node: 1 << i for i, nodes in enumerate(layers.values()) for node in nodes}
    above: dict[str, int] = {}  # the layers that a tensor depends on, as bits
    waits: dict[str, int] = {}  # those that the input of a node depends on
    for node in graph.nodes:
        read = 0
        for tensor in node_inputs(node):
            read |= above.get(tensor.name, 0)
        waits[node.name] = read
        for tensor in node.outputs:
            above[tensor.name] = read | bit.get(node.name, 0)
    left, done = list(layers), 0
    order: dict[str, list[str]] = {}
    while left:
        free = (name for name in left if not any(waits.get(node, 0) & ~done for node in layers[name]))
        name = next(free, left[0])
        order[name] = [node for node in layers[name] if not waits.get(node, 0) & ~done]
        left.remove(name)
        done |= bit[layers[name][0]]
    return order
