"""The target shapes of Reshape, Expand and Resize: constants, or concatenated from constants and computed sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed
from passes.channels.tracing import Size, Tracer
from passes.core.declined import Why
from passes.graph.model import constant_value
from passes.graph.naming import unused_name

__all__ = ["Entry", "entries"]


@dataclass(frozen=True)
class Entry:
    """One entry of a target shape.

    Attributes:
        value: the value of a constant entry; None if it is computed.
        path: the way to the tensor that holds the entry: the index of the reader's input, then of the input of the
            Concat that makes this, and so on.
        offset: index of the entry in the tensor at the end of the path, flattened.
        size: the numbers of channels from which the entry is computed; None if it is not.
        around: the value of the whole tensor at the end of the path; None if it is not known.
    """

    value: int | None
    path: tuple[int, ...]
    offset: int
    size: Size | None
    around: np.ndarray | None

    def follow(self, reader: gs.Node, ids: np.ndarray, tracer: Tracer) -> None:
        """Keep the entry equal to the number of `ids` that are left when channels are removed.

        Raises:
            Closed: the entry is computed from something other than numbers of channels.
        """
        if self.size is not None and self._is_number_of(ids, self.size):
            tracer.tie(self.size.ids, ids)
            return
        if self.around is None:
            raise Closed("has a computed number of channels", Why.UNKNOWN_SIZE)
        counted = ids if self.size is None else np.concatenate([ids, self.size.ids])
        tracer.adjust(reader, counted, lambda keep: self._set(reader, keep[ids].sum(), tracer))

    def _is_number_of(self, ids: np.ndarray, size: Size) -> bool:
        """Whether the entry stays right by itself once the channels that it counts are tied to `ids`.

        It is set instead where it counts the same channels in another order, as behind a shuffle: a tie would then
        connect all channels to each other.
        """
        if not size.counts or len(size.ids) != len(ids):
            return False
        return self.around is None or np.array_equal(ids, size.ids) or not np.isin(ids, size.ids).any()

    def stay(self, reader: gs.Node, tracer: Tracer) -> None:
        """Keep the entry at its value, on an axis that is not the channels'.

        Raises:
            Closed: the entry is computed from numbers of channels together with something else.
        """
        if self.size is None:
            return
        if self.around is None:
            raise Closed("gives another axis the number of channels")
        value = self.size.value
        tracer.adjust(reader, self.size.ids, lambda _: self._set(reader, value, tracer))

    def _set(self, reader: gs.Node, value: np.generic, tracer: Tracer) -> None:
        """Replace the tensor that holds the entry by a constant in which the entry has this value."""
        node = reader
        for index in self.path[:-1]:
            node = _own_maker(tracer.graph, node, index)
        old = constant_value(node.inputs[self.path[-1]])
        now = np.array(self.around if old is None else old)
        now.ravel()[self.offset] = value
        name = unused_name(tracer.graph, f"{reader.name}:shape:{self.path[-1]}")
        node.inputs[self.path[-1]] = gs.Constant(name, now)


def entries(node: gs.Node, index: int, tracer: Tracer) -> list[Entry]:
    """The entries of the shape that a node reads as input `index`."""
    return list(_entries(node.inputs[index], (index,), tracer))


def _entries(tensor: gs.Tensor, path: tuple[int, ...], tracer: Tracer) -> Iterator[Entry]:
    value = constant_value(tensor)
    maker = tensor.inputs[0] if tensor.inputs else None
    if value is not None:
        yield from (Entry(int(v), path, k, None, value) for k, v in enumerate(value.ravel()))
    elif maker is not None and maker.op == "Concat":
        for i, part in enumerate(maker.inputs):
            yield from _entries(part, (*path, i), tracer)
    else:
        sizes = tracer.sizes.get(tensor.name) or (None,) * math.prod(tracer.shape(tensor))
        sizes = tuple(None if s is None or not len(s.ids) else s for s in sizes)
        yield from (Entry(None, path, k, size, tracer.value(tensor)) for k, size in enumerate(sizes))


def _own_maker(graph: gs.Graph, node: gs.Node, index: int) -> gs.Node:
    """The node that computes an input of a node; a copy of it if others read its result."""
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
