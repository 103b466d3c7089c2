"""The target shapes that Reshape, Expand and Resize read: constants, or joined from constants and computed sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed
from passes.channels.tracing import Tracer
from passes.graph.model import constant_value
from passes.graph.naming import unused_name

__all__ = ["Entry", "entries"]


@dataclass(frozen=True)
class Entry:
    """One entry of a target shape: its value if constant, or the ids that it counts.

    `path` leads to a constant's place: the index of the reader's input, then of the input of the Concat that makes
    it, and so on; `offset` is the entry's place in the tensor at its end.
    """

    value: int | None
    path: tuple[int, ...]
    offset: int
    size: np.ndarray | None

    def follow(self, reader: gs.Node, ids: np.ndarray, tracer: Tracer) -> None:
        """Keep the entry at the number of ids that are left."""
        if self.value is None:
            if self.size is None or len(self.size) != len(ids):
                raise Closed("has a computed number of channels")
            tracer.tie(self.size, ids)
            return

        def resize(keep: np.ndarray) -> None:
            node = reader
            for index in self.path[:-1]:
                node = _own_maker(tracer.graph, node, index)
            old = constant_value(node.inputs[self.path[-1]])
            assert old is not None
            now = np.array(old)
            now.ravel()[self.offset] = keep[ids].sum()
            name = unused_name(tracer.graph, f"{reader.name}:shape:{self.path[-1]}")
            node.inputs[self.path[-1]] = gs.Constant(name, now)

        tracer.adjust(reader, ids, resize)


def entries(node: gs.Node, index: int, tracer: Tracer) -> list[Entry]:
    """The entries of a shape that a node reads: a constant, or joined from constants and computed sizes."""
    return list(_entries(node.inputs[index], (index,), tracer))


def _entries(tensor: gs.Tensor, path: tuple[int, ...], tracer: Tracer) -> Iterator[Entry]:
    value = constant_value(tensor)
    maker = tensor.inputs[0] if tensor.inputs else None
    if value is not None:
        yield from (Entry(int(v), path, k, None) for k, v in enumerate(value.ravel()))
    elif maker is not None and maker.op == "Concat":
        for i, part in enumerate(maker.inputs):
            yield from _entries(part, (*path, i), tracer)
    else:
        sizes = tracer.sizes.get(tensor.name) or (None,) * math.prod(tracer.shape(tensor))
        yield from (Entry(None, path, k, size) for k, size in enumerate(sizes))


def _own_maker(graph: gs.Graph, node: gs.Node, index: int) -> gs.Node:
    """The node that makes an input of a node, as a copy if others read what it makes."""
    tensor = node.inputs[index]
    maker = tensor.inputs[0]
    if len(tensor.outputs) == 1 and all(tensor is not t for t in graph.outputs):
        return maker
    own = gs.Variable(unused_name(graph, f"{node.name}:{tensor.name}"), tensor.dtype, tensor.shape)
    copy = maker.copy(inputs=list(maker.inputs), outputs=[own])
    copy.name = unused_name(graph, f"{node.name}:{maker.name}")
    node.inputs[index] = own
    graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is node), copy)
    return copy
