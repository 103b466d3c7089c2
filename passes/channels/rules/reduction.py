"""Operators that reduce or resample the other axes: pools, reductions, Resize."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, Rule, register
from passes.channels.rules.parameters import is_given, parameter
from passes.channels.rules.targets import entries
from passes.channels.tracing import Tracer

__all__: list[str] = []


@register("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
class Pooling(Rule):
    """Passes channels on."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Pools work on the axes from 2 on."""
        tracer.along(node.inputs[0], 1)
        tracer.pass_on(node)


@register("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin")
@register("ReduceProd", "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin")
class Reduce(Rule):
    """Passes channels on where it reduces other axes, and closes those that it reduces."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Axes are an attribute or an input. Without any, all axes are reduced, or none with noop_with_empty_axes."""
        stream = tracer.stream(node.inputs[0])
        if stream is None:
            return
        rank = tracer.rank(node.inputs[0])
        if node.op.startswith("Arg"):
            axes = [node.attrs.get("axis", 0) % rank]
        else:
            given = parameter(node, "axes", 1, tracer)
            if given is not None and len(given):
                axes = [int(a) % rank for a in given]
            else:
                axes = [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
        if stream.axis in axes:
            raise Closed("reduces over channels")
        if 0 in axes:
            raise Closed("reduces over the batch")
        keep = node.attrs.get("keepdims", 1)
        axis = stream.axis if keep else stream.axis - sum(a < stream.axis for a in axes)
        tracer.emit(node.outputs[0], axis, stream.ids)


@register("Resize", "Upsample")
class Resize(Rule):
    """Passes channels on where it resizes other axes."""

    follows_sizes = True

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Upsample has scales, as attribute or input; Resize has scales before opset 11, then roi, scales and sizes."""
        stream = tracer.stream(node.inputs[0])
        if stream is None:
            for index in range(len(node.inputs)):
                tracer.freeze(node, index)
            return
        given = node.attrs.get("axes")
        rank = tracer.rank(node.inputs[0])
        axes = [a % rank for a in (range(rank) if given is None else given)]
        place = axes.index(stream.axis) if stream.axis in axes else None
        early = node.op == "Upsample" or tracer.opset < 11
        scales = parameter(node, "scales", 1 if early else 2, tracer)
        if place is not None and scales is not None and len(scales) and scales[place] != 1:
            raise Closed("resizes the channel axis")
        if place is not None and not early and is_given(node, 3):
            target = entries(node, 3, tracer)
            if tracer.shape(node.outputs[0])[stream.axis] != len(stream.ids):
                raise Closed("resizes the channel axis")
            if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
                raise Closed("resizes the channel axis with the others")
            for i, entry in enumerate(target):
                if i != place:
                    entry.stay(node, tracer)
            target[place].follow(node, stream.ids, tracer)
        tracer.pass_on(node)
