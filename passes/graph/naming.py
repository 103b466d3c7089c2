"""Unused names for new tensors and nodes; those in subgraphs count as taken, too."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

__all__ = ["UnusedNames", "unused_name"]


class UnusedNames:
    """Gives names that a graph has not, one after the other, and none twice.

    Args:
        graph: it is looked at once, so that names which others add to it later are not known here.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._taken = set(_names(graph))

    def __call__(self, wanted: str) -> str:
        """The name `wanted`, with a number appended (`wanted#2`) if a tensor or a node has it already."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}#{count}"
        self._taken.add(name)
        return name


def unused_name(graph: gs.Graph, wanted: str) -> str:
    """One name that a graph has not; see `UnusedNames`."""
    return UnusedNames(graph)(wanted)


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
