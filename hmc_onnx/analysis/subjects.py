"""What is compressed: the layers and channel groups of a model that can be, and for the rest why not.

A grouped Conv (a depthwise one, too) is a layer only as a member of a channel group: its groups of channels go with
those of the layers around it, or it loses as many outputs of each of its groups; it is not decomposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from calib.measure.moments import Centred
from passes.branches import branch_sum
from passes.channels import ChannelGroup, Channels, trace
from passes.graph.layers import Layer, layer_of, why_not_a_layer
from passes.graph.model import Model
from passes.graph.shapes import Shapes, infer_shapes

# A second-moment matrix of so many features takes 800 MB; wide_resnet50_2 has 9,216 at most.
MOST_FEATURES = 10_000
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

__all__ = ["Subject", "Subjects", "find_subjects"]


@dataclass
class Subject:
    """A layer under study.

    Attributes:
        layer: its geometry and weights.
        size: spatial size of its input.
        position: of its node in the graph.
        input_group, output_group: the channel groups that it reads and writes, if they can be pruned.
        input_classes, output_classes: the class of each input and output channel in them.
        ends_branch: whether it is the last of a residual branch that can be removed.
        moments: of its patches, once measured.
    """

    layer: Layer
    size: tuple[int, ...]
    position: int
    input_group: str | None = None
    output_group: str | None = None
    input_classes: np.ndarray | None = None
    output_classes: np.ndarray | None = None
    ends_branch: bool = False
    moments: Centred = field(default_factory=Centred)

    @property
    def grouped(self) -> bool:
        """Whether it is a Conv of several groups, which is pruned by whole groups and not decomposed."""
        return self.layer.geometry.groups > 1


@dataclass(frozen=True)
class Subjects:
    """All layers by name in graph order, all groups by name, and the reasons against the others.

    `channels` are all channels of the model, with the groups joined that a layer reads together. `removable` are the
    groups whose channels may all go, since a residual branch goes with them. `inside` are those of `declined` that are
    within other nodes: in the branches of an If, say.
    """

    layers: dict[str, Subject]
    groups: dict[str, ChannelGroup]
    removable: set[str]
    declined: dict[str, str]
    inside: dict[str, str]
    channels: Channels = field(repr=False)


def find_subjects(model: Model, inputs: Mapping[str, tuple[int, ...]]) -> Subjects:
    """Go through a normalised model.

    Args:
        model: not changed.
        inputs: input shapes at batch 1.
    """
    shapes = infer_shapes(model, inputs)
    layers: dict[str, Subject] = {}
    declined: dict[str, str] = {}
    inside: dict[str, str] = {}
    for position, node in enumerate(model.graph.nodes):
        inside |= _inside(node, model.graph)
        if node.op not in ("Conv", "Gemm"):
            continue
        reason = why_not_a_layer(node, shapes) or _size_unknown(shapes, node.inputs[0].name)
        if reason is not None:
            declined[node.name] = reason
            continue
        layer = layer_of(node, shapes)
        if layer.geometry.features > MOST_FEATURES:
            declined[node.name] = f"its outputs have more than {MOST_FEATURES:,} inputs each: too many second moments"
            continue
        size = tuple(d for d in shapes[node.inputs[0].name][2:] if d is not None)
        layers[node.name] = Subject(layer, size, position)
    channels, reasons = _joined(trace(model, dict(inputs)), layers)
    declined |= {f"channels of {name}": reason for name, reason in reasons.items()}
    groups = {group.name: group for group in channels.groups if group.name not in reasons}
    for group in groups.values():
        for slot, classes in group.members("produces"):
            layers[slot.node.name].output_group, layers[slot.node.name].output_classes = group.name, classes
        for slot, classes in group.members("consumes"):
            layers[slot.node.name].input_group, layers[slot.node.name].input_classes = group.name, classes
        for slot, classes in group.members("follows"):
            subject = layers.get(slot.node.name)
            if subject is not None and subject.grouped and slot.index == 1:
                one_each = classes[:: subject.layer.geometry.outputs_a_group]
                subject.input_group = subject.output_group = group.name
                subject.input_classes = np.repeat(one_each, subject.layer.geometry.inputs_a_group)
                subject.output_classes = classes
    for name in [n for n, s in layers.items() if s.grouped and s.input_group is None and s.output_group is None]:
        del layers[name]
        declined[name] = "it is a grouped Conv, which is only pruned, and its channels cannot be"
    removable = _removable(model.graph, layers, groups, shapes)
    return Subjects(layers, groups, removable, declined | inside, inside, channels)


def _joined(channels: Channels, layers: Mapping[str, Subject]) -> tuple[Channels, dict[str, str]]:
    """The channels, with the groups joined that are read together, and why each of the others cannot be pruned."""
    reasons = {g.name: reason for g in channels.groups if (reason := g.closed or _unfit(g, layers)) is not None}
    while True:
        fit = [g for g in channels.groups if g.name not in reasons]
        prunable = np.zeros(channels.count, bool)
        for group in fit:
            prunable[np.concatenate(group.ids)] = True
        mixed = {g.name: name for g in fit if (name := _mixed_by(g, layers, prunable)) is not None}
        if not mixed:
            return channels.joined({g.name for g in fit}), reasons
        for group_name, layer in mixed.items():
            reasons[group_name] = f"the grouped Conv '{layer}' passes it on with channels that cannot be pruned"


def _mixed_by(group: ChannelGroup, layers: Mapping[str, Subject], prunable: np.ndarray) -> str | None:
    """A grouped Conv that passes a group's channels on together with some that cannot be pruned."""
    passed = [s for s, _ in group.members("follows") if s.node.name in layers and layers[s.node.name].grouped]
    return next((str(s.node.name) for s in passed if not prunable[s.ids].all()), None)


def _removable(
    graph: gs.Graph, layers: dict[str, Subject], groups: dict[str, ChannelGroup], shapes: Shapes
) -> set[str]:
    """Groups that one layer reads, the last of a residual branch, and those that lie before such a group in the branch.

    Of two branches that meet in a sum one can be removed.
    """
    nodes = {n.name: n for n in graph.nodes}
    readers = {name: [s.node.name for s, _ in group.members("consumes")] for name, group in groups.items()}
    only = {name: layers[own[0]] for name, own in readers.items() if len(own) == 1}
    found: set[str] = set()
    sums: set[int] = set()
    for name, layer in only.items():
        end = branch_sum(graph, nodes[layer.layer.name], shapes)
        if layer.output_group != name and end is not None and id(end) not in sums:
            sums.add(id(end))
            layer.ends_branch = True
            found.add(name)
    size = -1
    while size != len(found):
        size = len(found)
        found |= {name for name, layer in only.items() if layer.output_group in found}
    return found


def _inside(node: gs.Node, graph: gs.Graph) -> dict[str, str]:
    """The layers within a node that has graphs inside it, or is a local function, and why they are left alone."""
    bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
    bodies += [f for f in graph.functions if (f.name, f.domain) == (node.op, node.domain)]
    found: dict[str, str] = {}
    for inner in (n for body in bodies for n in body.nodes):
        if inner.op in LAYERS:
            what = f"{inner.op} node '{inner.name}' in '{node.name}'" if inner.name else f"{inner.op} in '{node.name}'"
            found[what] = f"it is inside {node.op} node '{node.name}', where nothing is changed and no MACs are counted"
        found |= _inside(inner, graph)
    return found


def _size_unknown(shapes: Shapes, name: str) -> str | None:
    return (
        "the size of its input is not known, and so its MACs are not counted"
        if None in shapes.get(name, (None,) * 3)[2:]
        else None
    )


def _unfit(group: ChannelGroup, layers: Mapping[str, Subject]) -> str | None:
    """Why a group that could be pruned is not: its least-squares repair needs plain layers at both ends."""
    for slot, _ in [*group.members("produces"), *group.members("consumes")]:
        if slot.node.name not in layers:
            return f"'{slot.node.name}' takes part and is left as it is"
        if slot.role == "consumes" and layers[slot.node.name].grouped:  # there is no repair for a part of each group
            return f"the grouped Conv '{slot.node.name}' would lose inputs of each of its groups, and is left as it is"
    return None
