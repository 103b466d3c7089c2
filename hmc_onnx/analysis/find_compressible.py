"""Finds the layers and channel groups of a model that can be compressed, and the reasons why others cannot."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from hmc_onnx.analysis.compressible import LAYERS, Compressible, CompressibleLayer, owners
from hmc_onnx.analysis.prunable_groups import prunable_groups
from hmc_onnx.analysis.removable_branches import removable_branches
from hmc_onnx.analysis.shared_layers import join_shared
from hmc_onnx.records.selection import ALL, LayerSelection
from passes.core.declined import Declined, Why
from passes.graph.cost import images_of, maps_an_image
from passes.graph.layers import OPERATORS, layer_of, why_not_a_layer
from passes.graph.model import Model
from passes.graph.shapes import Shapes

__all__ = ["find_compressible"]

# Upper bound on a layer's features (inputs times kernel size): their second-moment matrix takes 800 MB.
# wide_resnet50_2 has at most 9,216 features.
MOST_FEATURES = 10_000


def find_compressible(
    model: Model, inputs: Mapping[str, tuple[int, ...]], selection: LayerSelection = ALL
) -> Compressible:
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
    layers: dict[str, CompressibleLayer] = {}
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
        layers[node.name] = CompressibleLayer(layer, size, position, maps=maps)
    join_shared(model.graph, layers, declined)
    of = owners(layers)
    channels, refused = prunable_groups(model, dict(inputs), of, alone)
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
    removable = removable_branches(model.graph, layers, groups, shapes, alone.keys())
    return Compressible(layers, groups, removable, declined | inside, inside, channels)


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
