"""Operators that give the same data other axes: Reshape, Flatten, Expand, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, register
from passes.channels.rules.elementwise import Broadcasting, Unary
from passes.channels.rules.sizes import Movement
from passes.channels.rules.targets import entries
from passes.channels.tracing import Stream, Tracer
from passes.graph.evaluation import evaluate

__all__: list[str] = []

# How many operators are looked at behind a Reshape for what they do to its axes.
NEAR = 12


def collapse(ids: np.ndarray, tracer: Tracer, mixed: Collection[int] = ()) -> Stream:
    """The axis along which a tensor of ids varies; of several one is chosen, and what lies along the others is tied.

    That is the longest that has each channel once, or else the first: where channels are split in two axes, as for a
    shuffle, the longer one leaves more to choose from; one that is merged with the image's is no axis of channels.

    Args:
        ids: of one image, with the axes of the tensor.
        tracer: for the ties.
        mixed: axes that an operator behind mixes or takes apart, which are chosen if there is no other.
    """
    if ids.ndim < 2 or ids.shape[0] != 1:
        raise Closed("mixes channels with the batch")
    slices = [(axis, np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)) for axis in range(1, ids.ndim)]
    varied = [(axis, rows) for axis, rows in slices if (rows != rows[:1]).any()]
    alone = [(axis, rows) for axis, rows in varied or slices if (rows == rows[:, :1]).all()]
    once = {axis for axis, rows in varied if len(np.unique(rows[:, 0])) == len(rows)}
    found = alone or varied
    found = [f for f in found if f[0] not in mixed] or found
    split = len(found) == 2 and ids.ndim > 4  # a vector that becomes an image is split too, and its first axis counts
    axis, rows = max(found, key=lambda f: (f[0] in once) * len(f[1])) if split else found[0]
    if not alone:
        tracer.tie(rows, rows[:, :1])
    return Stream(axis, np.ascontiguousarray(rows[:, 0]))


def mixed_axes(tensor: gs.Tensor, tracer: Tracer) -> set[int]:
    """Axes of a tensor that operators behind it mix or take apart: of a Softmax, a Reduce, a Split.

    They are looked for behind elementwise operators and Transposes. The radix of split attention is found so: channels
    in (radix, width) are weighted by a Softmax over the radix and summed over it.
    """
    found: set[int] = set()
    rank = tracer.rank(tensor)
    pending = [(tensor, tuple(range(rank)))]  # with the axis of `tensor` that each of its axes is
    for at, axes in pending:
        for reader in at.outputs:
            name = reader.op
            if name == "Transpose":
                order = reader.attrs.get("perm", range(rank)[::-1])
                pending.append((reader.outputs[0], tuple(axes[a] for a in order)))
            elif name in ("Softmax", "LogSoftmax", "Split") and (tracer.opset >= 13 or name == "Split"):
                found.add(axes[reader.attrs.get("axis", 0 if name == "Split" else -1)])
            elif name.startswith("Reduce") and reader.inputs[0] is at:
                given = reader.attrs.get("axes", tracer.value(reader.inputs[1]) if len(reader.inputs) > 1 else None)
                found.update(axes[int(a)] for a in np.atleast_1d(() if given is None else given))
            elif isinstance(tracer.rules.rule_for(reader), (Unary, Broadcasting)) and len(pending) < NEAR:
                result = tracer.shapes.get(reader.outputs[0].name, ())
                if len(result) == rank:
                    pending.append((reader.outputs[0], axes))
    return found


def spread(stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of ids, of one image."""
    ids = stream.ids.reshape([-1 if a == stream.axis else 1 for a in range(len(shape))])
    return np.broadcast_to(ids, (1, *shape[1:]))


@register("Reshape", "Flatten")
class Reshape(Movement):
    """Merges the channel axis with others, or splits it: then what is one entry of the first part goes together."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """A target shape of constants or of computed sizes, with 0 (as in the input) and -1 (what is left)."""
        shape, target = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
        if stream.axis == 0 or not target or shape[0] != target[0] or math.prod(shape) != math.prod(target):
            raise Closed("mixes channels with the batch")
        moved = collapse(spread(stream, shape).reshape(1, *target[1:]), tracer, mixed_axes(node.outputs[0], tracer))
        if node.op == "Reshape":
            self._follow(node, stream, moved, tracer)
        tracer.emit(node.outputs[0], moved.axis, moved.ids)

    def _follow(self, node: gs.Node, stream: Stream, moved: Stream, tracer: Tracer) -> None:
        copies = not node.attrs.get("allowzero", 0)
        for axis, entry in enumerate(entries(node, 1, tracer)):
            copied = entry.value == 0 and copies
            if axis == moved.axis:
                if copied and (stream.axis != axis or len(stream.ids) != len(moved.ids)):
                    raise Closed("takes the size of its channel axis from another one")
                if entry.value != -1 and not copied:
                    entry.follow(node, moved.ids, tracer)
            elif copied and axis == stream.axis:
                raise Closed("gives another axis the number of channels")
            else:
                entry.stay(node, tracer)


@register("Expand")
class Expand(Movement):
    """Passes channels on where it spreads other axes, such as a gate's."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """The target shape is aligned at the last axis; 1 leaves an axis as it is."""
        rank, after = tracer.rank(node.inputs[0]), tracer.shape(node.outputs[0])
        axis = len(after) - rank + stream.axis
        if after[axis] != len(stream.ids):
            raise Closed("spreads one channel over several")
        target = entries(node, 1, tracer)
        for i, entry in enumerate(target, start=len(after) - len(target)):
            if i == axis and entry.value != 1:
                entry.follow(node, stream.ids, tracer)
            else:
                entry.stay(node, tracer)
        tracer.emit(node.outputs[0], axis, stream.ids)


@register("DepthToSpace", "SpaceToDepth")
class Depth(Movement):
    """Moves channels into blocks of the image or back: those that share a block go together."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Traced by running the operator on the ids."""
        tracer.along(node.inputs[0], 1)
        (moved,) = evaluate(node, [spread(stream, tracer.shape(node.inputs[0]))], tracer.opset)
        by_channel = moved[0].reshape(moved.shape[1], -1)
        tracer.tie(by_channel, by_channel[:, :1])
        tracer.emit(node.outputs[0], 1, np.ascontiguousarray(by_channel[:, 0]))
