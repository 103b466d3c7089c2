"""Finds the layers and channel groups of a model that can be compressed, and the reasons why others cannot.

A grouped Conv (also a depthwise one) is never decomposed, so it counts as a layer only if it is in a channel group that
can be pruned. It loses either whole groups together with the layers around it, or equally many outputs of each group.

Nodes that read the same weight (the branches of a siamese network, a head applied at several scales) are the uses of
one layer, which is named after the first of them. They may have different biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace

import numpy as np
import onnx_graphsurgeon as gs

from calib.measure.moments import Centred
from hmc_onnx.records.selection import ALL, Selection
from passes.channels import ChannelGroup, Channels, trace
from passes.core.declined import Declined, Why
from passes.decompose import chain_macs
from passes.graph.cost import images_of, maps_an_image
from passes.graph.layers import OPERATORS, Geometry, Layer, layer_of, why_not_a_layer
from passes.graph.model import Model
from passes.graph.shapes import Shapes
from passes.graph.sharing import shared_weights
from passes.residual import residual_sum

# Upper bound on a layer's features (inputs times kernel size): their second-moment matrix takes 800 MB.
# wide_resnet50_2 has at most 9,216 features.
MOST_FEATURES = 10_000
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

__all__ = ["LAYERS", "Subject", "Subjects", "Use", "find_subjects", "owners", "readers"]


@dataclass(frozen=True)
class Use:
    """A node that applies a layer.

    Attributes:
        name: name of the node.
        input, output: names of the tensors that it reads and writes.
        size: spatial size of its input.
        position: index of the node in the graph.
        maps: number of inputs of that size that it processes per image.
        bias: index of its bias among the layer's `biases`.
    """

    name: str
    input: str
    output: str
    size: tuple[int, ...]
    position: int
    maps: int = 1
    bias: int = 0


@dataclass
class Subject:
    """A layer that can be compressed.

    Attributes:
        layer: its geometry and weights; names and tensors are those of its first node.
        size: spatial size of its input; of the first, where several nodes apply the layer.
        position: index of its first node in the graph.
        input_group, output_group: names of the prunable channel groups that it reads and writes; None if there is none.
        input_classes, output_classes: the class of each input and output channel in these groups, int.
        ends_branch: whether it is the last layer of a residual branch that can be removed.
        maps: number of inputs of that size that it processes per image; more than 1 if crops or frames are folded into
            the batch, or if a Gemm reads a sequence.
        moments: moments of its patches, over all its uses, once they are measured.
        further: the uses behind the first one, in graph order; most layers have none.
        further_biases: the biases (O,), float64, of uses that have another bias than the first one.
    """

    layer: Layer
    size: tuple[int, ...]
    position: int
    input_group: str | None = None
    output_group: str | None = None
    input_classes: np.ndarray | None = None
    output_classes: np.ndarray | None = None
    ends_branch: bool = False
    maps: int = 1
    moments: Centred = field(default_factory=Centred)
    further: tuple[Use, ...] = ()
    further_biases: tuple[np.ndarray, ...] = ()

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        """The different biases of all uses, (O,) each, float64; `Use.bias` says which."""
        return self.layer.bias, *self.further_biases

    @property
    def uses(self) -> tuple[Use, ...]:
        """All uses of the layer, in graph order."""
        layer = self.layer
        return Use(layer.name, layer.input, layer.output, self.size, self.position, self.maps), *self.further

    @property
    def grouped(self) -> bool:
        """Whether it is a Conv of several groups, which is pruned but not decomposed."""
        return self.layer.geometry.groups > 1

    def macs(self, *links: Geometry) -> int:
        """MACs per image of the layer, or of a chain of links that replaces it, over all uses."""
        return sum(chain_macs(links or (self.layer.geometry,), use.size) * use.maps for use in self.uses)


@dataclass(frozen=True)
class Subjects:
    """The layers and channel groups of a model that can be compressed, and the reasons why others cannot.

    Attributes:
        layers: the layers by name, in graph order.
        groups: the channel groups by name; groups that one layer reads concatenated are joined.
        removable: names of the groups that may lose all channels, because a residual branch is removed with them.
        refused: the refused layers and groups, by the name that reports use.
        refused_inside: the part of `refused` that lies inside other nodes, such as in the branches of an If.
        channels: all channels of the model, in `groups` and in refused groups.
    """

    layers: dict[str, Subject]
    groups: dict[str, ChannelGroup]
    removable: set[str]
    refused: dict[str, Declined]
    refused_inside: dict[str, Declined]
    channels: Channels = field(repr=False)

    @property
    def declined(self) -> dict[str, str]:
        """The reasons in `refused` as sentences, for profiles and plans."""
        return {name: refusal.reason for name, refusal in self.refused.items()}

    @property
    def inside(self) -> dict[str, str]:
        """The reasons in `refused_inside` as sentences."""
        return {name: refusal.reason for name, refusal in self.refused_inside.items()}

    def without_removal(self) -> Subjects:
        """A copy in which no residual branch may be removed."""
        return replace(self, removable=set())


def owners(layers: Mapping[str, Subject]) -> dict[str, Subject]:
    """The layer of each node that applies one, by the node's name."""
    return {use.name: subject for subject in layers.values() for use in subject.uses}


def readers(
    group: ChannelGroup, layers: Mapping[str, Subject], role: str = "consumes"
) -> list[tuple[Subject, np.ndarray]]:
    """The layers that read a channel group, each once, with the class of each of its input channels.

    Args:
        group: a group whose producers and consumers are all in `layers`.
        layers: the layers by name.
        role: "consumes", or "produces" for the layers that write the group, with the classes of their outputs.
    """
    of = owners(layers)
    found: dict[str, tuple[Subject, np.ndarray]] = {}
    for slot, classes in group.members(role):
        subject = of[slot.node.name]
        found.setdefault(subject.layer.name, (subject, classes))
    return list(found.values())


def find_subjects(model: Model, inputs: Mapping[str, tuple[int, ...]], selection: Selection = ALL) -> Subjects:
    """Find the layers and channel groups of a model.

    Args:
        model: a model in normal form; it is not changed.
        inputs: shape of each input at batch size 1, or at the declared batch size.
        selection: the layers that the user leaves alone. Their channels are not pruned, as that would change them.

    Raises:
        SettingsError: the selection does not fit the model.
    """
    alone = selection.left_alone([n.name for n in model.graph.nodes if n.op in LAYERS])
    shapes = model.shapes_at(inputs)
    batch = images_of(inputs)
    layers: dict[str, Subject] = {}
    declined: dict[str, Declined] = {}
    inside: dict[str, Declined] = {}
    for position, node in enumerate(model.graph.nodes):
        inside |= _inside(node, model.graph)
        if node.op not in OPERATORS:
            continue
        reason = alone.get(node.name) or why_not_a_layer(node, shapes) or _size_unknown(shapes, node)
        if reason is not None:
            declined[node.name] = reason
            continue
        layer = layer_of(node, shapes)
        if layer.geometry.features > MOST_FEATURES:
            said = f"its outputs have more than {MOST_FEATURES:,} inputs each: too many second moments"
            declined[node.name] = Declined(node.name, Why.TOO_LARGE, said)
            continue
        size = tuple(d for d in shapes[node.inputs[0].name][2:] if d is not None)
        maps = maps_an_image(shapes[node.inputs[0].name], len(size), batch)
        layers[node.name] = Subject(layer, size, position, maps=maps)
    _join_shared(model.graph, layers, declined)
    of = owners(layers)
    channels, refused = _prunable(model, dict(inputs), of, alone)
    declined |= {f"channels of {name}": reason for name, reason in refused.items()}
    groups = {group.name: group for group in channels.groups if group.name not in refused}
    for group in groups.values():
        for slot, classes in group.members("produces"):
            of[slot.node.name].output_group, of[slot.node.name].output_classes = group.name, classes
        for slot, classes in group.members("consumes"):
            of[slot.node.name].input_group, of[slot.node.name].input_classes = group.name, classes
        for slot, classes in group.members("follows"):
            subject = of.get(slot.node.name)
            if subject is not None and subject.grouped and slot.index == 1:
                one_each = classes[:: subject.layer.geometry.outputs_a_group]
                subject.input_group = subject.output_group = group.name
                subject.input_classes = np.repeat(one_each, subject.layer.geometry.inputs_a_group)
                subject.output_classes = classes
    for name in [n for n, s in layers.items() if s.grouped and s.input_group is None and s.output_group is None]:
        said = "it is a grouped Conv, which is only pruned, and its channels cannot be"
        declined |= {use.name: Declined(use.name, Why.GROUPED, said) for use in layers.pop(name).uses}
    removable = _removable(model.graph, layers, groups, shapes, alone.keys())
    return Subjects(layers, groups, removable, declined | inside, inside, channels)


def _join_shared(graph: gs.Graph, layers: dict[str, Subject], declined: dict[str, Declined]) -> None:
    """Make one layer of the nodes that share a weight, in place, or decline all of them.

    Args:
        graph: the graph.
        layers: a layer for each node, by the node's name; those of further uses are taken out.
        declined: the reasons why nodes are no layers, to which those of shared weights are added.
    """
    for name, nodes in shared_weights(graph).items():
        why = _why_not_one(name, nodes, layers, declined)
        own = [layers.pop(node.name) for node in (nodes if why is not None else nodes[1:]) if node.name in layers]
        if why is None:
            first = layers[nodes[0].name]
            for subject in own:
                bias = subject.layer.bias
                at = next((i for i, known in enumerate(first.biases) if np.array_equal(known, bias)), None)
                if at is None:
                    at, first.further_biases = len(first.biases), (*first.further_biases, bias)
                first.further += (replace(subject.uses[0], bias=at),)
        else:
            declined |= {s.layer.name: Declined(s.layer.name, Why.SHARED, why) for s in own}


def _why_not_one(
    name: str, nodes: Sequence[gs.Node], layers: Mapping[str, Subject], declined: Mapping[str, Declined]
) -> str | None:
    """Why the nodes that share a weight cannot be changed as one layer, as a sentence; None if they can."""
    for node in nodes:
        if node.name not in layers:
            why = declined.get(node.name)
            left = f", which is left alone: {why}" if why is not None else f" ({node.op})"
            return f"its weights are shared with '{node.name}'{left}"
        if [t.name for t in node.inputs].index(name) != 1:
            return f"'{node.name}' ({node.op}) reads its weights in another place, too"
    first, *others = nodes
    one = layers[first.name].layer
    for node in others:
        other = layers[node.name].layer
        different = [
            f.name for f in fields(Geometry) if getattr(one.geometry, f.name) != getattr(other.geometry, f.name)
        ]
        if node.op != first.op:
            different = ["operators"]
        elif any(node.attrs.get(a, d) != first.attrs.get(a, d) for a, d in (("transB", 0), ("alpha", 1), ("beta", 1))):
            different = ["scales or layouts"]
        if different:
            what = " and ".join(different)
            return f"its weights are shared by '{first.name}' and '{node.name}', whose {what} differ"
    return None


def _prunable(
    model: Model, inputs: dict[str, tuple[int, ...]], layers: Mapping[str, Subject], alone: Mapping[str, Declined]
) -> tuple[Channels, dict[str, Declined]]:
    """The channels of a model, and by name the reason why each refused group cannot be pruned.

    `layers`, here and in the functions below, holds the layer of each node that applies one, by the node's name.

    Prunable groups that one layer reads concatenated are joined. A grouped Conv loses whole groups if that is possible
    and there is more than one class to choose from. Otherwise it loses equally many outputs of each group, and keeps
    its inputs, because there is no repair for a part of each group.
    """
    channels = trace(model, inputs)
    split = _split(channels, layers)
    if split:
        by_group = trace(model, inputs, whole_groups=split)
        refused = _refused(by_group, layers, alone)
        fit = [g for g in by_group.groups if g.name not in refused and g.size > 1]
        whole = {str(s.node.name) for g in fit for s, _ in g.members("follows")} & split
        while True:
            channels = trace(model, inputs, whole_groups=whole)
            refused = _refused(channels, layers, alone)
            fit = [g for g in channels.groups if g.name not in refused and g.size > 1]
            in_vain = _split(channels, layers) - {str(s.node.name) for g in fit for s, _ in g.members("produces")}
            if not in_vain:
                break
            whole |= in_vain
    refused = _refused(channels, layers, alone)
    return channels.joined({g.name for g in channels.groups if g.name not in refused}), refused


def _split(channels: Channels, layers: Mapping[str, Subject]) -> set[str]:
    """Names of the grouped Convs that lose equally many outputs of each group."""
    nodes = [slot.node for group in channels.groups for slot, _ in group.members("produces")]
    return {str(n.name) for n in nodes if n.name in layers and layers[n.name].grouped}


def _refused(channels: Channels, layers: Mapping[str, Subject], alone: Mapping[str, Declined]) -> dict[str, Declined]:
    """The groups that cannot be pruned, with the reasons, by name."""
    reasons = {g.name: g.declined or _unfit(g, layers, alone) for g in channels.groups}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    while True:
        fit = [g for g in channels.groups if g.name not in refused]
        prunable = np.zeros(channels.count, bool)
        for group in fit:
            prunable[np.concatenate(group.ids)] = True
        mixed = {g.name: name for g in fit if (name := _mixed_by(g, layers, prunable)) is not None}
        if not mixed:
            return refused
        for name, layer in mixed.items():
            said = f"the grouped Conv '{layer}' passes it on with channels that cannot be pruned"
            refused[name] = Declined(name, Why.CHANNELS, said)


def _mixed_by(group: ChannelGroup, layers: Mapping[str, Subject], prunable: np.ndarray) -> str | None:
    """Name of a grouped Conv that passes on a group's channels together with unprunable ones; None if there is none."""
    passed = [s for s, _ in group.members("follows") if s.node.name in layers and layers[s.node.name].grouped]
    return next((str(s.node.name) for s in passed if not prunable[s.ids].all()), None)


def _removable(
    graph: gs.Graph,
    layers: dict[str, Subject],
    groups: dict[str, ChannelGroup],
    shapes: Shapes,
    alone: Set[str],
) -> set[str]:
    """Names of the groups inside residual branches that can be removed; marks the last layer of each such branch.

    These are the groups whose only reader is the last layer of a branch, and those before them in the branch. Of two
    branches that end in one sum, only one can be removed; one with a layer in it that is left `alone` cannot.
    """
    nodes = {n.name: n for n in graph.nodes}
    reading = {name: [s.node.name for s, _ in group.members("consumes")] for name, group in groups.items()}
    only = {name: layers[own[0]] for name, own in reading.items() if len(own) == 1}
    found: set[str] = set()
    sums: set[int] = set()
    for name, layer in only.items():
        joined = residual_sum(graph, nodes[layer.layer.name], shapes)
        if layer.output_group == name or joined is None or not joined.removable:
            continue
        if alone and alone & {n.name for n in _read_only_by(nodes[layer.layer.name])}:
            continue
        if id(joined.add) not in sums:
            sums.add(id(joined.add))
            layer.ends_branch = True
            found.add(name)
    size = -1
    while size != len(found):
        size = len(found)
        found |= {name for name, layer in only.items() if layer.output_group in found}
    return found


def _read_only_by(node: gs.Node) -> list[gs.Node]:
    """A node and those before it that nothing reads without it: what goes when it goes."""
    gone, waiting = {id(node): node}, [node]
    while waiting:
        for before in (t.inputs[0] for t in waiting.pop().inputs if t.inputs):
            if id(before) not in gone and all(id(r) in gone for t in before.outputs for r in t.outputs):
                gone[id(before)] = before
                waiting.append(before)
    return list(gone.values())


def _inside(node: gs.Node, graph: gs.Graph) -> dict[str, Declined]:
    """The layers inside a node with subgraphs, or inside a local function, and why they are refused."""
    bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
    bodies += [f for f in graph.functions if (f.name, f.domain) == (node.op, node.domain)]
    found: dict[str, Declined] = {}
    for inner in (n for body in bodies for n in body.nodes):
        if inner.op in LAYERS:
            what = f"{inner.op} node '{inner.name}' in '{node.name}'" if inner.name else f"{inner.op} in '{node.name}'"
            said = f"it is inside {node.op} node '{node.name}', where nothing is changed and no MACs are counted"
            found[what] = Declined(inner.name, Why.NESTED, said)
        found |= _inside(inner, graph)
    return found


def _size_unknown(shapes: Shapes, node: gs.Node) -> Declined | None:
    if None not in shapes.get(node.inputs[0].name, (None,) * 3)[2:]:
        return None
    return Declined(node.name, Why.UNKNOWN_SIZE, "the size of its input is not known, and so its MACs are not counted")


def _unfit(group: ChannelGroup, layers: Mapping[str, Subject], alone: Mapping[str, Declined]) -> Declined | None:
    """Why a traced group is refused, or None.

    Pruning it would change a layer that is left alone; or the least-squares repair lacks supported layers at both ends.
    """
    for slot in group.slots:
        if slot.node.name in alone:
            said = f"'{slot.node.name}' takes part, which is {alone[slot.node.name].reason}"
            return Declined(group.name, Why.CHOSEN, said)
    for slot, _ in [*group.members("produces"), *group.members("consumes")]:
        name = str(slot.node.name)
        if name not in layers:
            return Declined(group.name, Why.CHANNELS, f"'{name}' takes part and is left as it is")
        if slot.role == "consumes" and layers[name].grouped:  # there is no repair for a part of each group
            said = f"the grouped Conv '{name}' would lose inputs of each of its groups, and is left as it is"
            return Declined(group.name, Why.CHANNELS, said)
    return None
