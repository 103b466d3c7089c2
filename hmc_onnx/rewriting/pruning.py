"""The part of a plan that makes layers narrower: removing channels and residual branches. Nothing is repaired here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hmc_onnx.analysis.compressible import Use
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.records.plan import Plan
from passes.branches import remove_branch
from passes.channels import ChannelGroup
from passes.core.declined import Declined
from passes.core.errors import PlanError
from passes.graph.model import Model
from passes.graph.shapes import Shapes
from passes.residual import residual_sum

__all__ = ["Pruned", "prune"]


@dataclass(frozen=True)
class Pruned:
    """The result of pruning.

    Attributes:
        outputs: masks of the original's output channels that each layer's node keeps.
        inputs: masks of the original's input channels that each pruned layer keeps, by the layer's name.
        touched: names of the nodes that have lost channels.
        uses: the nodes that apply each layer, in graph order, by the layer's name.
        declined: why other nodes are no layers, by their names.
    """

    outputs: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    touched: set[str]
    uses: dict[str, tuple[Use, ...]]
    declined: dict[str, Declined]

    def inputs_of(self, name: str) -> np.ndarray | slice:
        """The input channels that a layer keeps, as an index."""
        return self.inputs.get(name, slice(None))


def prune(model: Model, plan: Plan, inputs: dict[str, tuple[int, ...]]) -> Pruned:
    """Remove a plan's channels and residual branches from a model, in place.

    Args:
        model: in normal form.
        plan: a plan for it.
        inputs: shape of each input at batch size 1, or at the declared batch size.

    Raises:
        PlanError: the plan names groups or channels that the model does not have.
    """
    compressible = find_compressible(model, inputs, plan.settings.selection)
    channels = compressible.channels
    known = {g.name: g for g in channels.groups}
    removed: dict[str, np.ndarray] = {}
    gone: list[ChannelGroup] = []
    for name, group in plan.groups.items():
        if name not in known:
            raise PlanError(f"the plan names a channel group that the model does not have: '{name}'")
        if known[name].size != group.size:
            raise PlanError(
                f"the plan's group '{name}' is of size {group.size}, and the model's of {known[name].size}: correct it"
            )
        if any(not 0 <= c < group.size for c in group.removed):
            raise PlanError(f"the plan removes channels of '{name}' that it does not have: it has {group.size}")
        if len(set(group.removed)) < len(group.removed):
            raise PlanError(f"the plan removes a channel of '{name}' twice: name each once")
        if len(set(group.removed)) == group.size:
            gone.append(known[name])
        elif group.removed:
            removed[name] = np.array(group.removed)
    outputs: dict[str, np.ndarray] = {}
    touched = set()
    for group_ in channels.groups:
        for slot, classes in zip(group_.slots, group_.classes, strict=True):
            lost = np.isin(classes, removed.get(group_.name, np.zeros(0, int)))
            if slot.role == "produces" or (slot.node.op == "Conv" and slot.index == 1 and slot.axis == 0):
                outputs[slot.node.name] = outputs.get(slot.node.name, True) & ~lost
            if lost.any():
                touched.add(slot.node.name)
    channels.remove(removed)
    if gone:
        _remove_branches(model, gone, model.shapes_at(inputs))
    layers = compressible.layers
    return Pruned(
        outputs=outputs,
        inputs={
            n: ~np.isin(s.input_classes, removed[s.input_group])
            for n, s in layers.items()
            if s.input_group in removed and s.input_classes is not None
        },
        touched=touched,
        uses={n: s.uses for n, s in layers.items()},
        declined=compressible.declined,
    )


def _remove_branches(model: Model, gone: list[ChannelGroup], shapes: Shapes) -> None:
    """Remove the residual branches of groups that keep no channels; raises PlanError if a group is in none."""
    readers = {group.name: [s.node for s, _ in group.members("consumes")] for group in gone}
    for nodes in readers.values():
        joined = residual_sum(model.graph, nodes[0], shapes) if len(nodes) == 1 else None
        if joined is not None and joined.removable:
            remove_branch(model.graph, nodes[0])
    model.graph.cleanup()
    left = {id(n) for n in model.graph.nodes}
    for name, nodes in readers.items():
        if any(id(n) in left for n in nodes):
            raise PlanError(f"the plan removes all channels of '{name}', which is no residual branch: keep some")
