"""Operators that normalise by statistics: given ones, those of each channel, or those of several channels."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, Rule, register
from passes.channels.rules.parameters import parameter, weight
from passes.channels.tracing import Tracer

__all__: list[str] = []


@register("BatchNormalization", "InstanceNormalization")
class PerChannel(Rule):
    """Passes channels on; scale, shift and statistics are pruned with them."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """All inputs but the first have one value for each channel."""
        if not node.attrs.get("spatial", 1):
            raise Closed("has a scale for each place of the image")
        ids = tracer.along(node.inputs[0], 1)
        if ids is None:
            return
        for index in range(1, len(node.inputs)):
            weight(node, index)
            tracer.slot(node, index, 0, "follows", ids)
        tracer.pass_on(node)


@register("GroupNormalization")
class PerGroup(Rule):
    """Passes channels on; those of a group are removed together, and scale and shift are pruned with them."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Scale and shift have one value for each channel since opset 21; in the deprecated form, for each group."""
        ids = tracer.along(node.inputs[0], 1)
        if ids is None:
            return
        by_group = ids.reshape(node.attrs["num_groups"], -1)
        tracer.tie(by_group, by_group[:, :1])
        for index in (1, 2):
            per_channel = weight(node, index).shape[0] == len(ids)
            tracer.slot(node, index, 0, "follows", ids if per_channel else by_group[:, 0])
        tracer.adjust(node, ids, lambda keep: node.attrs.update(num_groups=int(keep[by_group[:, 0]].sum())))
        tracer.pass_on(node)


@register("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "LayerNormalization", "RMSNormalization")
@register("MeanVarianceNormalization", "LRN")
class Across(Rule):
    """Passes channels on where it handles each separately, and closes those that it mixes (LRN always does)."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Each of these operators says in its own way which axes it mixes."""
        stream = tracer.stream(node.inputs[0])
        if stream is None:
            return
        rank = tracer.rank(node.inputs[0])
        if node.op == "LRN":
            mixed = [1]
        elif node.op == "MeanVarianceNormalization":
            mixed = [a % rank for a in node.attrs.get("axes", [0, 2, 3])]
        elif node.op in ("LayerNormalization", "RMSNormalization"):
            mixed = list(range(node.attrs.get("axis", -1) % rank, rank))
        elif node.op == "CumSum":
            axis = parameter(node, "axis", 1, tracer)
            mixed = [] if axis is None else [int(axis[0]) % rank]
        elif node.op in ("Softmax", "LogSoftmax", "Hardmax") and tracer.opset < 13:
            mixed = list(range(node.attrs.get("axis", 1) % rank, rank))
        else:
            mixed = [node.attrs.get("axis", -1) % rank]
        if stream.axis in mixed:
            raise Closed("mixes channels")
        tracer.pass_on(node)
