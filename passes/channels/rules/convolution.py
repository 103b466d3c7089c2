"""Conv and ConvTranspose."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Rule, register
from passes.channels.rules.parameters import is_given, weight
from passes.channels.tracing import Tracer

__all__: list[str] = []


@register("Conv", "ConvTranspose")
class Convolution(Rule):
    """Ends input channels and begins new ones; if grouped, loses whole groups or equally many channels of each."""

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
        elif x is None:  # its input is the image, or something else that cannot lose channels
            return
        else:
            ids = tracer.fresh(shape[0] if node.op == "Conv" else shape[1] * groups)
            tracer.postpone(GroupedConvolution(node, x.reshape(groups, -1), ids.reshape(groups, -1)))
        if groups == 1 and is_given(node, 2):
            tracer.slot(node, 2, 0, "follows", ids)
        tracer.emit(node.outputs[0], 1, ids)


class GroupedConvolution:
    """A Conv of several groups. They must stay of equal size, so channels can be removed in one of two ways.

    Either whole groups are removed, with their inputs and outputs, as in a ResNeXt or a depthwise Conv. Or equally many
    channels of each group are removed: the first channels of all groups together, the second ones, and so on; inputs
    and outputs are independent then. Only the second way is left where other operators tie all groups to each other, as
    in the split attention of a ResNeSt or behind a channel shuffle.

    Attributes:
        node: the Conv or ConvTranspose.
        inputs, outputs: ids (groups, channels of each group).
    """

    def __init__(self, node: gs.Node, inputs: np.ndarray, outputs: np.ndarray) -> None:
        self.node, self.inputs, self.outputs = node, inputs, outputs

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input."""
        return self.inputs.shape[1] == 1

    @property
    def whole(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ties that hold if whole groups are removed: pairs of id arrays."""
        first = self.inputs[:, :1]
        return [(ids.ravel(), np.broadcast_to(first, ids.shape).ravel()) for ids in (self.inputs, self.outputs)]

    def is_one(self, label: np.ndarray) -> bool:
        """Whether all its inputs have the same label, and all its outputs; `label` by id is equal for tied channels."""
        return len(np.unique(label[self.inputs])) == len(np.unique(label[self.outputs])) == 1

    def is_torn(self, label: np.ndarray) -> bool:
        """Whether channels of different groups are tied (have the same label), at the inputs or at the outputs."""
        return any(_in_several_rows(label[ids]) for ids in (self.inputs, self.outputs))

    def by_group(self, tracer: Tracer) -> None:
        """Record ties and slots for the removal of whole groups."""
        node, inputs = self.node, self.inputs
        for a, b in self.whole:
            tracer.tie(a, b)
        tracer.slot(node, 1, 0, "follows", (self.outputs if node.op == "Conv" else inputs).ravel())
        self._bias(tracer)
        tracer.adjust(node, inputs.ravel(), lambda keep: node.attrs.update(group=int(keep[inputs[:, 0]].sum())))

    def by_place(self, tracer: Tracer) -> None:
        """Record ties and slots for the removal of equally many channels of each group."""
        tracer.tie(self.inputs, self.inputs[:1])
        tracer.tie(self.outputs, self.outputs[:1])
        transposed = self.node.op != "Conv"
        read, made = (self.inputs.ravel(), self.outputs[0]) if transposed else (self.inputs[0], self.outputs.ravel())
        tracer.slot(self.node, 1, 0 if transposed else 1, "consumes", read)
        tracer.slot(self.node, 1, 1 if transposed else 0, "produces", made)
        self._bias(tracer)

    def _bias(self, tracer: Tracer) -> None:
        if is_given(self.node, 2):
            tracer.slot(self.node, 2, 0, "follows", self.outputs.ravel())


def _in_several_rows(label: np.ndarray) -> bool:
    """Whether any label occurs in more than one row."""
    rows = np.concatenate([np.unique(row) for row in label])
    return len(np.unique(rows)) < len(rows)
