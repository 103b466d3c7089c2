"""Unused names for new tensors and nodes; those in subgraphs count as taken, too."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

__all__ = ["unused_name"]


def unused_name(graph: gs.Graph, wanted: str) -> str:
    """The name `wanted`, with a number appended (`wanted#2`) if a tensor or a node has it already."""
    taken = set(_names(graph))
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}#{count}"
    return name


def _names(graph: gs.Graph) -> Iterator[str]:
    for tensor in (*graph.inputs, *graph.outputs):
        yield tensor.name
    for node in graph.nodes:
        yield node.name
        for tensor in (*node.inputs, *node.outputs):
            yield tensor.name
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _names(value)
