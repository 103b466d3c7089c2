"""Operators that move data, and the channels with them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, register
from passes.channels.rules.parameters import is_given, parameter, set_parameter
from passes.channels.rules.sizes import Movement
from passes.channels.tracing import Stream, Tracer

__all__: list[str] = []


@register("Identity", "Cast")
class PassOn(Movement):
    """Passes channels on."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """The output has the channels of the input."""
        tracer.pass_on(node)


@register("Transpose")
class Transpose(Movement):
    """Moves the channel axis."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Output axis a is input axis perm[a]; by default the order is reversed."""
        order = list(node.attrs.get("perm", range(tracer.rank(node.inputs[0]))[::-1]))
        if order[0] != 0:
            raise Closed("moves the batch to another axis")
        tracer.emit(node.outputs[0], order.index(stream.axis), stream.ids)


@register("Squeeze", "Unsqueeze")
class Squeeze(Movement):
    """Drops or adds axes other than the channel axis."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Axes are an attribute or an input; Unsqueeze counts them in its output."""
        given = parameter(node, "axes", 1, tracer)
        if given is None:
            raise Closed("has no axes, and so may drop the batch")
        dropped = node.op == "Squeeze"
        rank = tracer.rank(node.inputs[0]) if dropped else tracer.rank(node.inputs[0]) + len(given)
        axes = [int(a) % rank for a in given]
        if 0 in axes or (dropped and stream.axis in axes):
            raise Closed("drops the channel axis, or moves the batch to another")
        others = [a for a in range(rank) if a not in axes]
        axis = others.index(stream.axis) if dropped else others[stream.axis]
        tracer.emit(node.outputs[0], axis, stream.ids)


@register("Concat")
class Concat(Movement):
    """Joins channels along their axis; along another one it ties them."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """An input that carries no channels gets new ids, which are closed."""
        rank = tracer.rank(node.inputs[0])
        axis = node.attrs["axis"] % rank
        streams = [tracer.stream(t) for t in node.inputs]
        if any(s is not None and s.axis != stream.axis for s in streams):
            raise Closed("joins tensors with channels along different axes")
        if axis != stream.axis:
            for s in streams:
                if s is None:
                    raise Closed("joins channels with a tensor that carries none")
                tracer.tie(stream.ids, s.ids)
            tracer.emit(node.outputs[0], stream.axis, stream.ids)
            return
        parts = []
        for tensor, s in zip(node.inputs, streams, strict=True):
            ids = tracer.fresh(tracer.shape(tensor)[axis]) if s is None else s.ids
            if s is None:
                tracer.close(ids, f"'{tensor.name}' cannot lose channels")
            parts.append(ids)
        tracer.emit(node.outputs[0], axis, np.concatenate(parts))


@register("Split")
class Split(Movement):
    """Splits channels along their axis; along another axis it passes them on."""

    outputs = None

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Sizes are an attribute, an input, or left out for equal parts."""
        axis = node.attrs.get("axis", 0) % tracer.rank(node.inputs[0])
        if axis != stream.axis:
            for output in node.outputs:
                tracer.emit(output, stream.axis, stream.ids)
            return
        split = parameter(node, "split", 1, tracer)
        sizes = [tracer.shape(t)[axis] for t in node.outputs] if split is None else [int(n) for n in split]
        parts = np.split(stream.ids, np.cumsum(sizes)[:-1])
        for output, ids in zip(node.outputs, parts, strict=True):
            tracer.emit(output, axis, ids)

        def resize(keep: np.ndarray) -> None:
            node.attrs.pop("num_outputs", None)
            index = 1 if tracer.opset >= 13 else None
            set_parameter(tracer.graph, node, "split", index, np.array([keep[ids].sum() for ids in parts]))

        tracer.adjust(node, stream.ids, resize)


@register("Slice")
class Slice(Movement):
    """Selects a range of channels along their axis; along another axis it passes them on."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Bounds are attributes before opset 10, inputs since; a computed bound must be of another axis."""
        rank = tracer.rank(node.inputs[0])
        axes = parameter(node, "axes", 3, tracer)
        if axes is None:
            starts = parameter(node, "starts", 1, tracer)
            axes = np.arange(len(starts) if starts is not None else 0)
        places = [i for i, a in enumerate(axes) if int(a) % rank == stream.axis]
        if not places:
            tracer.pass_on(node)
            return
        place, count = places[0], len(stream.ids)
        places_of = {"starts": 1, "ends": 2, "steps": 4}
        bounds = {name: parameter(node, name, index, tracer) for name, index in places_of.items()}
        start, end, step = (1 if b is None else int(b[place]) for b in bounds.values())
        first, last, _ = slice(start, end, step).indices(count)
        if step != 1 or last <= first:
            raise Closed("selects channels with a step other than 1, or none at all")
        tracer.emit(node.outputs[0], stream.axis, stream.ids[first:last])

        def resize(keep: np.ndarray) -> None:
            before, inside = keep[stream.ids[:first]].sum(), keep[stream.ids[first:last]].sum()
            for name, value in (("starts", before), ("ends", before + inside)):
                bound = np.array(bounds[name])
                bound[place] = value
                set_parameter(tracer.graph, node, name, places_of[name], bound)

        tracer.adjust(node, stream.ids, resize)


@register("Gather")
class Gather(Movement):
    """Selects channels by constant indices; along another axis it passes them on."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """In the output, the axes of the indices take the place of the axis from which they select."""
        axis = node.attrs.get("axis", 0) % tracer.rank(node.inputs[0])
        rank = tracer.rank(node.inputs[1])
        if axis == 0:
            raise Closed("selects images of the batch")
        if axis != stream.axis:
            shift = 0 if stream.axis < axis else rank - 1
            tracer.emit(node.outputs[0], stream.axis + shift, stream.ids)
            return
        indices = parameter(node, "indices", 1, tracer)
        if rank != 1 or indices is None:
            raise Closed("selects channels by indices that are not a constant list")
        ids = stream.ids[indices]
        tracer.emit(node.outputs[0], axis, ids)

        def renumber(keep: np.ndarray) -> None:
            now = np.cumsum(keep[stream.ids]) - 1
            places = np.arange(len(stream.ids))[indices]  # negative indices count from the end
            set_parameter(tracer.graph, node, "indices", 1, now[places[keep[ids]]].astype(indices.dtype))

        tracer.adjust(node, stream.ids, renumber)


@register("Pad")
class Pad(Movement):
    """Adds channels of zeros before and after the others (or cuts some off), and pads other axes."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Pads are an attribute or an input, since opset 18 of some axes only; negative ones cut off."""
        pads, rank = parameter(node, "pads", 1, tracer), tracer.rank(node.inputs[0])
        given = parameter(node, "axes", 3, tracer)
        axes = [int(a) % rank for a in (range(rank) if given is None else given)]
        if pads is None or len(pads) != 2 * len(axes):
            raise Closed("has no pads")
        place = axes.index(stream.axis) if stream.axis in axes else None
        before, after = (0, 0) if place is None else (int(pads[place]), int(pads[place + len(axes)]))
        if place is None or before == after == 0:
            tracer.pass_on(node)
            return
        if node.attrs.get("mode", "constant") != "constant":
            raise Closed(f"pads channels by mode '{node.attrs['mode']}'")
        value = node.attrs.get("value", 0.0)
        if is_given(node, 2):
            constant = parameter(node, "constant_value", 2, tracer)
            value = 0.0 if constant is None else constant.ravel()[0]
        first = stream.ids[: max(-before, 0)] if before < 0 else tracer.fresh(before)
        last = stream.ids[len(stream.ids) + min(after, 0) :] if after < 0 else tracer.fresh(after)
        inner = stream.ids[max(-before, 0) : len(stream.ids) + min(after, 0)]
        if len(inner) == 0:
            raise Closed("cuts all channels off")
        added = [first] * (before > 0) + [last] * (after > 0)
        if value != 0:
            for ids in added:
                tracer.close(ids, f"Pad node '{node.name}' adds them, with the value {value:g}")
        ids = np.concatenate([first[: max(before, 0)], inner, last[: max(after, 0)]])
        tracer.emit(node.outputs[0], stream.axis, ids)

        def resize(keep: np.ndarray) -> None:
            now = np.array(pads)
            for at, end in ((place, first), (place + len(axes), last)):
                now[at] = np.sign(now[at]) * keep[end].sum()
            set_parameter(tracer.graph, node, "pads", 1, now)

        tracer.adjust(node, np.concatenate([first, last]), resize)


@register("Tile")
class Tile(Movement):
    """Repeats channels; the copies are removed with the original."""

    def move(self, node: gs.Node, stream: Stream, tracer: Tracer) -> None:
        """Repeats are an input, with one number for each axis."""
        repeats = parameter(node, "repeats", 1, tracer)
        if repeats is None or repeats[0] != 1:
            raise Closed("repeats the batch")
        tracer.emit(node.outputs[0], stream.axis, np.tile(stream.ids, int(repeats[stream.axis])))
