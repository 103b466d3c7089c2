"""Removes channels from every parameter and shape that depends on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.channels.tracing import trace
from passes.graph.graph_pass import GraphPass, require_unique_names
from passes.graph.model import Model

__all__ = ["PruneChannels"]


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
    """

    removed: Mapping[str, Sequence[int]]
    sizes: Mapping[str, tuple[int, ...]] | None = None

    def rewrite(self, model: Model) -> int:
        """Remove the channels in place; returns how many classes were removed.

        Raises:
            ModelError: a group is closed or unknown, has no such class, or a tensor would lose its last channel; or an
                input size is unknown.
        """
        chosen = {name: np.unique(np.asarray(classes, int)) for name, classes in self.removed.items() if len(classes)}
        if chosen:
            trace(model, None if self.sizes is None else dict(self.sizes)).remove(chosen)
            model.forget_shapes()
        return sum(map(len, chosen.values()))

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where two nodes share a name or one has none."""
        super().requires(model)
        require_unique_names(model)
