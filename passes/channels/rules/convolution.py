"""Conv and ConvTranspose."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.channels.registry import Rule, register
from passes.channels.rules.parameters import is_given, weight
from passes.channels.tracing import Tracer

__all__: list[str] = []


@register("Conv", "ConvTranspose")
class Convolution(Rule):
    """Ends its input's channels and begins new ones; grouped or depthwise, all channels of a group go together."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """A Conv's weight is (O, I / groups, *kernel), a ConvTranspose's (I, O / groups, *kernel)."""
        shape = weight(node, 1).shape
        if is_given(node, 2):
            weight(node, 2)
        groups = node.attrs.get("group", 1)
        inward, outward = (1, 0) if node.op == "Conv" else (0, 1)
        x = tracer.along(node.inputs[0], 1)
        if groups == 1:
            ids = tracer.fresh(shape[outward])
            if x is not None:
                tracer.slot(node, 1, inward, "consumes", x)
            tracer.slot(node, 1, outward, "produces", ids)
        elif x is None:  # over an image, or what else cannot lose channels
            return
        else:
            ids = tracer.fresh(shape[0] if node.op == "Conv" else shape[1] * groups)
            by_group = x.reshape(groups, -1)
            tracer.tie(by_group, by_group[:, :1])
            tracer.tie(ids.reshape(groups, -1), by_group[:, :1])
            tracer.slot(node, 1, 0, "follows", ids if node.op == "Conv" else x)
            tracer.adjust(node, x, lambda keep: node.attrs.update(group=int(keep[by_group[:, 0]].sum())))
        if is_given(node, 2):
            tracer.slot(node, 2, 0, "follows", ids)
        tracer.emit(node.outputs[0], 1, ids)
