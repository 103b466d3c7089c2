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

# Number of tensors behind a Reshape whose readers are searched for operators that mix its axes.
NEAR = 12


def collapse(ids: np.ndarray, tracer: Tracer, mixed: Collection[int] = ()) -> Stream:
    """Find the axis along which a tensor of ids varies, as the channel axis.

    If there are several, one is chosen and the ids along the others are tied. Where channels are split in two axes, as
    for a shuffle, this is the longer one that has each channel once, since it leaves more to choose from; otherwise it
    is the first. (An axis that merges channels with those of the image is not an axis of channels.)

    Args:
        ids: the id of the channel of each value of one image: (1, …), with the axes of the tensor.
        tracer: the tracer to record ties with.
        mixed: axes that a later operator mixes or takes apart, which are chosen only if there is no other.

    Raises:
        Closed: the tensor mixes channels with the batch.
    """
    if ids.ndim < 2 or ids.shape[0] != 1:
        raise Closed("mixes channels with the batch")
    slices = [(axis, np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)) for axis in range(1, ids.ndim)]
    varied = [(axis, rows) for axis, rows in slices if (rows != rows[:1]).any()]
    alone = [(axis, rows) for axis, rows in varied or slices if (rows == rows[:, :1]).all()]
    once = {axis for axis, rows in varied if len(np.unique(rows[:, 0])) == len(rows)}
    found = alone or varied
    found = [f for f in found if f[0] not in mixed] or found
    split = len(found) == 2 and ids.ndim > 4  # a vector reshaped to an image is split too: by its first axis
    axis, rows = max(found, key=lambda f: (f[0] in once) * len(f[1])) if split else found[0]
    if not alone:
        tracer.tie(rows, rows[:, :1])
    return Stream(axis, np.ascontiguousarray(rows[:, 0]))


def mixed_axes(tensor: gs.Tensor, tracer: Tracer) -> set[int]:
    """Axes of a tensor that operators behind it mix or take apart: a Softmax, a Reduce or a Split.

    The search goes on through elementwise operators and Transposes. It finds the radix of split attention, for example:
    channels (radix, width) are weighted by a Softmax over the radix and summed over it.
    """
    found: set[int] = set()
    rank = tracer.rank(tensor)
    pending = [(tensor, tuple(range(rank)))]  # each with the axes of `tensor` that its own axes are
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
    """The id of the channel of each value of one image: (1, *shape[1:])."""
    ids = stream.ids.reshape([-1 if a == stream.axis else 1 for a in range(len(shape))])
    return np.broadcast_to(ids, (1, *shape[1:]))


@register("Reshape", "Flatten")
class Reshape(Movement):
    """Merges the channel axis with others, or splits it; channels at one place of the new channel axis go together."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """The target shape has constants or computed sizes; 0 stands for the input's size, -1 for what is left."""
        shape, target = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
        if 0 < stream.axis == len(shape) - 1 and len(target) > 1 and shape[0] != target[0] and shape[-1] == target[-1]:
            self._last(node, stream, len(target) - 1, tracer)
            return
        if stream.axis == 0 or not target or shape[0] != target[0] or math.prod(shape) != math.prod(target):
            raise Closed("mixes channels with the batch")
        moved = collapse(spread(stream, shape).reshape(1, *target[1:]), tracer, mixed_axes(node.outputs[0], tracer))
        if node.op == "Reshape":
            self._follow(node, stream, moved, tracer)
        tracer.emit(node.outputs[0], moved.axis, moved.ids)

    def _last(self, node: gs.Node, stream: Stream, axis: int, tracer: Tracer) -> None:
        """Channels on the last axis, which stays, while those before it are merged or split, as for tokens."""
        moved = Stream(axis, stream.ids)
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
    """Passes channels on where it broadcasts other axes, such as a gate's."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """The target shape is aligned at the last axis; 1 leaves an axis as it is."""
        rank, after = tracer.rank(node.inputs[0]), tracer.shape(node.outputs[0])
        axis = len(after) - rank + stream.axis
        if after[axis] != len(stream.ids):
            raise Closed("broadcasts one channel over several")
        target = entries(node, 1, tracer)
        for i, entry in enumerate(target, start=len(after) - len(target)):
            if i == axis and entry.value != 1:
                entry.follow(node, stream.ids, tracer)
            else:
                entry.stay(node, tracer)
        tracer.emit(node.outputs[0], axis, stream.ids)


@register("DepthToSpace", "SpaceToDepth")
class Depth(Movement):
    """Moves channels into blocks of the image or back; channels that share a block are removed together."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Traced by running the operator on the ids."""
        tracer.along(node.inputs[0], 1)
        (moved,) = evaluate(node, [spread(stream, tracer.shape(node.inputs[0]))], tracer.opset)
        by_channel = moved[0].reshape(moved.shape[1], -1)
        tracer.tie(by_channel, by_channel[:, :1])
        tracer.emit(node.outputs[0], 1, np.ascontiguousarray(by_channel[:, 0]))
