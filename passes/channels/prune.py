"""Removes channels from every parameter and shape that depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from passes.channels.tracing import trace
from passes.core.arguments import check_type
from passes.core.errors import ModelError
from passes.graph.carrying import serialised
from passes.graph.graph_pass import GraphPass, require_unique_names
from passes.graph.model import Model

__all__ = ["PruneChannels"]

# The axis of a layer's weight that has its inputs, by the layer's operator; in a Conv, those of one group.
READS: dict[str, Callable[[gs.Node], int]] = {
    "Conv": lambda node: 1,
    "ConvTranspose": lambda node: 0,
    "Gemm": lambda node: int(bool(node.attrs.get("transB", 0))),
}


@dataclass(frozen=True)
class PruneChannels(GraphPass):
    """Remove channels of channel groups, with their slices of all parameters that produce, scale or read them.

    Attributes:
        removed: the classes to remove, counted from 0, by name of the group: that of the first node that produces its
            channels. `passes.channels.trace` lists groups and classes. Class c is the channel of index c where all
            tensors of the group hold the channels in the same order and number.
        sizes: input shapes by name to trace with; None: those of the model at batch 1.

    Requires:
        Each node has a name of its own. All groups named are in the model, open, and keep a class in each tensor.

    Ensures:
        Each layer reads as many channels as it has weights for.
    """

    removed: Mapping[str, Sequence[int]]
    sizes: Mapping[str, tuple[int, ...]] | None = None

    def rewrite(self, model: Model) -> int:
        """Remove the channels in place; returns how many classes were removed.

        Raises:
            ModelError: a group is closed or unknown, has no such class, or a tensor would lose its last channel; what
                is to be removed is not a list of whole numbers; or `sizes` is not of the model's inputs.
        """
        check_type(self.removed, Mapping, "`removed`", "give the classes of each group by its name", ModelError)
        every = {name: np.unique(_whole_numbers(name, classes)) for name, classes in self.removed.items()}
        chosen = {name: classes for name, classes in every.items() if len(classes)}
        if self.sizes is not None:
            _check_sizes(self.sizes, model)
        if chosen:
            trace(model, None if self.sizes is None else dict(self.sizes)).remove(chosen)
            model.forget_shapes()
        return sum(map(len, chosen.values()))

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where two nodes share a name or one has none."""
        super().requires(model)
        require_unique_names(model)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where a layer reads another number of channels than its weight has."""
        graph = Model(serialised(model))
        shapes = graph.shapes if self.sizes is None else graph.shapes_at(dict(self.sizes))
        for node in graph.graph.nodes:
            read = [shapes.get(tensor.name, ()) for tensor in node.inputs[:2]]
            if node.op not in READS or min(map(len, read), default=0) < 2:
                continue
            channels, own = read[0][1], read[1][READS[node.op](node)]
            wanted = None if own is None else own * (node.attrs.get("group", 1) if node.op == "Conv" else 1)
            if None not in (channels, wanted) and channels != wanted:
                raise PostconditionError(f"node '{node.name}' reads {channels} channels, and has weights for {wanted}")


def _whole_numbers(group: str, classes: object) -> np.ndarray:
    """The classes to remove, int (n,); a mask or fractions would be other numbers than the caller means."""
    try:
        found = np.asarray(classes)
    except ValueError:  # lists of different lengths
        found = np.array(None)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ModelError(
            f"channel group '{group}': {classes!r:.60} is no list of whole numbers: give one such as [0, 3]"
        )
    return found.astype(int)


def _check_sizes(sizes: Mapping[str, tuple[int, ...]], model: Model) -> None:
    """Raise ModelError where a shape is of no input, or has another number of axes than the input."""
    inputs = {tensor.name: tensor.shape for tensor in model.graph.inputs}
    for name, size in sizes.items():
        if name not in inputs:
            raise ModelError(f"`sizes` has '{name}', which is no input: the model's are {', '.join(inputs)}")
        declared = inputs[name]
        if not isinstance(size, Sequence) or isinstance(size, str) or (declared and len(size) != len(declared)):
            raise ModelError(f"`sizes` has {size!r:.60} for '{name}': give a number for each of its axes")
