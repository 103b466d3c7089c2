"""BatchNormalization, and constants that scale or shift each channel, folded into the convolution before them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.graph.graph_pass import GraphPass
from passes.graph.model import Model
from passes.graph.naming import unused_name
from passes.graph.sharing import shared_weights
from passes.normal_form.affine import affine, is_float, take_over

__all__ = ["FoldAffine"]

# The axis of the output channels in the weight of each operator.
AXES = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True)
class FoldAffine(GraphPass):
    """Fold nodes that scale or shift each channel by a constant into the Conv before them, if nothing else reads it.

    The rule is s (W * x + b) + t = (s W) * x + (s b + t). It is applied to one node after another behind the Conv,
    across Transposes too, and computed in float64 and rounded once, to the weight's own type. It holds for a
    ConvTranspose as for a Conv; a grouped ConvTranspose, whose weight has no axis of all output channels, is left.

    A weight that several nodes read stays shared: a node is folded only if all of them are Convs of equal biases, and
    an equal node follows each of them. All of these nodes are then folded at once, into one new weight and bias.

    onnxscript's rule is not used: it renames nodes, which plans and reports refer to by name, and computes in the
    model's own precision.

    Constants must be initializers (onnx-ir's LiftConstantsToInitializersPass makes them so); Convs, scales and shifts
    with others are left as they are.

    Requires:
        What every `GraphPass` does.

    Ensures:
        The model computes the same, but for rounding.
    """

    def rewrite(self, model: Model) -> int:
        """Fold in place; returns how many nodes were folded."""
        graph = model.graph
        outputs = {t.name for t in graph.outputs}
        shared = shared_weights(graph)
        nodes = [n for n in graph.nodes if n.op in AXES]
        for conv in nodes:
            if conv.inputs[-1].is_empty():  # a bias left out
                conv.inputs.pop()
        folded = 0
        for conv in nodes:
            convs = shared.get(conv.inputs[1].name, [conv])
            if convs[0] is not conv or not _alike(convs):
                continue
            places = [(member, 1) for member in convs]  # the Conv or the last Transpose behind it, its axis of channels
            shape = conv.inputs[1].shape
            while (found := _next_affine(places, shape[AXES[conv.op]], len(shape), outputs)) is not None:
                places, readers, s, t = found
                _absorb(graph, convs, s, t)
                for (last, _), reader in zip(places, readers, strict=True):
                    take_over(last, reader)
                folded += len(readers)
        graph.cleanup()
        return folded


def _alike(convs: Sequence[gs.Node]) -> bool:
    """Whether these nodes, all that read a weight, are of one operator, with constant weights and equal biases."""
    weight = convs[0].inputs[1]
    for conv in convs:
        if conv.op != convs[0].op or conv.inputs[1] is not weight:
            return False
        if conv.op == "ConvTranspose" and conv.attrs.get("group", 1) != 1:
            return False
        if not all(isinstance(t, gs.Constant) for t in conv.inputs[1:]) or len(conv.inputs) != len(convs[0].inputs):
            return False
    if not is_float(weight):
        return False
    biases = [conv.inputs[2] for conv in convs if len(conv.inputs) > 2]
    return all(b is biases[0] or np.array_equal(b.values, biases[0].values) for b in biases)


Place = tuple[gs.Node, int]


def _next_affine(
    places: Sequence[Place], channels: int, rank: int, outputs: Collection[str]
) -> tuple[list[Place], list[gs.Node], np.ndarray, np.ndarray] | None:
    """The next nodes that can be folded, one behind each place, with the new places and the s and t of all of them.

    None if a place has no such node behind it, or where these nodes differ.
    """
    found = [_reader(place, rank, outputs) for place in places]
    new: list[Place] = []
    readers: list[gs.Node] = []
    common: tuple[np.ndarray, np.ndarray] | None = None
    for each in found:
        if each is None:
            return None
        last, axis, reader = each
        own = affine(reader, channels, rank, axis)
        common = common or own
        if own is None or common is None or not all(map(np.array_equal, own, common)):
            return None
        new.append((last, axis))
        readers.append(reader)
    return None if common is None else (new, readers, *common)


def _reader(place: Place, rank: int, outputs: Collection[str]) -> tuple[gs.Node, int, gs.Node] | None:
    """The only reader behind a place, beyond Transposes, with the node before it and that node's axis of channels."""
    last, axis = place
    while last.outputs[0].name not in outputs and len(last.outputs[0].outputs) == 1:
        reader = last.outputs[0].outputs[0]
        if reader.op != "Transpose":
            return last, axis, reader
        last, axis = reader, list(reader.attrs.get("perm", range(rank)[::-1])).index(axis)
    return None


def _absorb(graph: gs.Graph, convs: Sequence[gs.Node], s: np.ndarray, t: np.ndarray) -> None:
    """Give Convs of one weight and equal biases one new weight s W and bias s b + t."""
    conv = convs[0]
    weight = conv.inputs[1]
    values = np.asarray(weight.values)
    new = list(conv.inputs[1:])
    if (s != 1).any():
        along = [-1 if axis == AXES[conv.op] else 1 for axis in range(values.ndim)]
        scaled = s.reshape(along) * values.astype(np.float64)
        new[0] = _constant(graph, convs, weight, scaled.astype(values.dtype))
    if len(conv.inputs) > 2:
        bias = (s * np.asarray(conv.inputs[2].values, np.float64) + t).astype(values.dtype)
        new[1] = _constant(graph, convs, conv.inputs[2], bias)
    elif t.any():
        new.append(gs.Constant(unused_name(graph, f"{conv.name}:bias"), t.astype(values.dtype)))
    for member in convs:
        member.inputs = [member.inputs[0], *new]


def _constant(graph: gs.Graph, nodes: Sequence[gs.Node], old: gs.Constant, values: np.ndarray) -> gs.Constant:
    """A constant for `nodes` in place of `old`: under its name if only they read it, else under a new one."""
    alone = all(any(reader is node for node in nodes) for reader in old.outputs)
    return gs.Constant(old.name if alone else unused_name(graph, f"{old.name}:{nodes[0].name}"), values)
