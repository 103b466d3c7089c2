"""The target shapes that Reshape, Expand and Resize read: constants, or joined from constants and computed sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed
from passes.channels.tracing import Tracer
from passes.model import constant_value
from passes.naming import unused_name

__all__ = ["Entry", "entries"]


@dataclass(frozen=True)
class Entry:
    """One entry of a target shape: its value if constant, where it can be changed, or the ids that it counts."""

    value: int | None
    node: gs.Node | None
    index: int
    offset: int
    size: np.ndarray | None

    def follow(self, reader: gs.Node, ids: np.ndarray, tracer: Tracer) -> None:
        """Keep the entry at the number of ids that are left."""
        if self.value is None:
            if self.size is None or len(self.size) != len(ids):
                raise Closed("has a computed number of channels")
            tracer.tie(self.size, ids)
            return
        if self.node is None:
            raise Closed("shares its computed shape with another node")
        node = self.node

        def resize(keep: np.ndarray) -> None:
            old = constant_value(node.inputs[self.index])
            assert old is not None
            now = np.array(old)
            now.ravel()[self.offset] = keep[ids].sum()
            name = unused_name(tracer.graph, f"{reader.name}:shape:{self.index}")
            node.inputs[self.index] = gs.Constant(name, now)

        tracer.adjust(node, ids, resize)


def entries(node: gs.Node, index: int, tracer: Tracer, shared: bool = False) -> list[Entry]:
    """The entries of a shape that a node reads: a constant, or joined from constants and computed sizes."""
    tensor = node.inputs[index]
    value = constant_value(tensor)
    if value is not None:
        return [Entry(int(v), None if shared else node, index, k, None) for k, v in enumerate(value.ravel())]
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is not None and maker.op == "Concat":
        shared = shared or len(tensor.outputs) > 1
        return [e for i in range(len(maker.inputs)) for e in entries(maker, i, tracer, shared)]
    sizes = tracer.sizes.get(tensor.name) or (None,) * math.prod(tracer.shape(tensor))
    return [Entry(None, None, index, k, size) for k, size in enumerate(sizes)]
