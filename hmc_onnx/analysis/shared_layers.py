"""Layers that several nodes apply: nodes that read the same weight become one layer, or are all left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import onnx_graphsurgeon as gs

from hmc_onnx.analysis.compressible import CompressibleLayer
from passes.core.declined import Declined, Why
from passes.graph.layers import Geometry
from passes.graph.sharing import shared_weights

__all__ = ["join_shared"]


def join_shared(graph: gs.Graph, layers: dict[str, CompressibleLayer], declined: dict[str, Declined]) -> None:
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
    name: str, nodes: Sequence[gs.Node], layers: Mapping[str, CompressibleLayer], declined: Mapping[str, Declined]
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
