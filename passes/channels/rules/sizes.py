"""Numbers of channels that the graph computes by Shape, and the base of the rules that move data.

Operators that move data (`Movement`) also move numbers of channels, for example out of a shape. This is traced by
running the operator on numbered entries. Arithmetic on numbers of channels is in `arithmetic`.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, Rule, register
from passes.channels.rules.arithmetic import cast_size, size_entries
from passes.channels.tracing import Size, Stream, Tracer
from passes.graph.evaluation import evaluate

__all__ = ["Movement"]


class Movement(Rule):
    """Moves data. The first input (for Concat, every input) holds the data, and the others say where to move them."""

    follows_sizes = True

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Channels are moved by `move`, numbers of channels by running the operator."""
        data = [t for t in (node.inputs if node.op == "Concat" else node.inputs[:1]) if not t.is_empty()]
        stream = next((s for t in data if (s := tracer.stream(t)) is not None), None)
        if stream is not None:
            self.move(node, stream, tracer)
        elif any(t.name in tracer.sizes for t in data):
            self._move_sizes(node, data, tracer)
        else:
            for index in range(len(node.inputs)):
                tracer.freeze(node, index)

    @abstractmethod
    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Set the channels of the outputs; `stream` is that of the first input that carries channels."""

    def _move_sizes(self, node: gs.Node, data: list[gs.Tensor], tracer: Tracer) -> None:
        counted: list[Size | None] = []
        feeds: list[np.ndarray | None] = []
        for tensor in node.inputs:
            if tensor.is_empty():
                feeds.append(None)
            elif any(tensor is t for t in data):
                shape = tracer.shape(tensor)
                numbers = np.arange(len(counted), len(counted) + int(np.prod(shape))).reshape(shape)
                counted += size_entries(tensor, tracer).ravel().tolist()
                feeds.append(numbers)
            else:
                value = tracer.value(tensor)
                if value is None:
                    raise Closed("takes a number of channels from a computed place")
                tracer.freeze(node, len(feeds))
                feeds.append(value)
        for output, numbers in zip(node.outputs, evaluate(node, feeds, tracer.opset), strict=True):
            moved = tuple(counted[int(i)] for i in np.ravel(numbers))
            tracer.sizes[output.name] = tuple(cast_size(s, node) for s in moved) if node.op == "Cast" else moved


@register("Shape")
class Shape(Rule):
    """Counts channels; sizes that are computed from the count are followed to where they are used."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """The axes from `start` to `end`, since opset 15."""
        stream = tracer.stream(node.inputs[0])
        if stream is not None:
            channels = Size(stream.ids, np.int64(len(stream.ids)), True)
            sizes = tuple(channels if a == stream.axis else None for a in range(tracer.rank(node.inputs[0])))
            tracer.sizes[node.outputs[0].name] = sizes[node.attrs.get("start", 0) : node.attrs.get("end")]


@register("Size")
class CountAll(Rule):
    """Closes the channels that it counts."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """What is computed from a product of sizes is not followed."""
        if tracer.stream(node.inputs[0]):
            raise Closed("counts channels together with the rest")


@register("Constant", "ConstantOfShape")
class NoChannels(Rule):
    """Begins no channels."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Do nothing; an input that is computed from numbers of channels keeps its value (see `follows_sizes`)."""
