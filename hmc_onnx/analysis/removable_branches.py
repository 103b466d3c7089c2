"""The residual branches of a model that can be removed whole."""

from __future__ import annotations

from collections.abc import Set

import onnx_graphsurgeon as gs

from hmc_onnx.analysis.compressible import CompressibleLayer
from passes.channels import ChannelGroup
from passes.graph.shapes import Shapes
from passes.residual import residual_sum

__all__ = ["removable_branches"]


def removable_branches(
    graph: gs.Graph,
    layers: dict[str, CompressibleLayer],
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
