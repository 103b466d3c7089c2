"""Candidates as changes of a graph's initializers, the form in which their sensitivity is measured.

The nodes that apply a shared layer read the same initializers, so a change of these changes all of its uses; it is
measured from the first of them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from calib.measure.sensitivity import Change
from hmc_onnx.analysis.compressible import Compressible, CompressibleLayer, readers
from hmc_onnx.search_space.candidates import Candidate
from hmc_onnx.search_space.elimination import Elimination
from passes.core.shelf import Kept
from passes.graph.layers import in_layout_of
from passes.graph.model import element_type

__all__ = ["group_changes", "layer_changes"]


def group_changes(
    compressible: Compressible, eliminations: dict[str, Elimination], nodes: dict[str, gs.Node]
) -> Iterable[Change]:
    """Yield a change for each channel group: its options remove some of the channels, or the whole residual branch.

    Args:
        compressible: the layers and groups.
        eliminations: the elimination of each group, by name.
        nodes: the nodes of the graph, by name.
    """
    for name, group in compressible.groups.items():
        consumers = [subject for subject, _ in readers(group, compressible.layers)]
        options = {
            ("group", name, m): partial(_feeds, nodes, consumers, weights)
            for m, weights in eliminations[name].weights.items()
        }
        if name in compressible.removable and consumers[0].ends_branch:
            options["group", name, group.size] = partial(_branch_feeds, nodes, consumers[0])
        costs = {("group", name, m): 1 - m / group.size for m in [*eliminations[name].weights, group.size]}
        yield _change(consumers, options, nodes, costs)


def layer_changes(
    layers: dict[str, CompressibleLayer], plain: dict[str, list[Candidate]], nodes: dict[str, gs.Node]
) -> Iterable[Change]:
    """Yield a change for each layer: its options are its decompositions, each as the dense kernel equivalent to it."""
    for name, subject in layers.items():
        options = {
            ("layer", name, c.offer.method, c.offer.rank): partial(_candidate_feeds, nodes, subject, c)
            for c in plain[name]
        }
        macs = subject.macs()
        costs = {("layer", name, c.offer.method, c.offer.rank): c.offer.macs / macs for c in plain[name]}
        yield _change([subject], options, nodes, costs)


def _change(
    changed: Sequence[CompressibleLayer],
    options: Mapping[Any, Callable[[], dict[str, np.ndarray]]],
    nodes: dict[str, gs.Node],
    costs: Mapping[Any, float],
) -> Change:
    first = min(changed, key=lambda s: s.position)
    initializers = dict.fromkeys(t.name for s in changed for use in s.uses for t in nodes[use.name].inputs[1:3])
    return Change(first.layer.input, first.position, tuple(initializers), options, costs)


def _candidate_feeds(
    nodes: dict[str, gs.Node], subject: CompressibleLayer, candidate: Candidate
) -> dict[str, np.ndarray]:
    return _feeds(nodes, [subject], [Kept(candidate.kernel)])


def _branch_feeds(nodes: dict[str, gs.Node], end: CompressibleLayer) -> dict[str, np.ndarray]:
    """A residual branch replaced by its mean, because the layers behind it, once repaired, contribute that mean."""
    return _feeds(nodes, [end], [Kept(np.zeros(end.layer.geometry.weight_shape))])


def _feeds(
    nodes: dict[str, gs.Node], changed: Sequence[CompressibleLayer], kernels: Sequence[Kept]
) -> dict[str, np.ndarray]:
    """Values of the layers' initializers, by name: the kernels, and biases that keep the layers' mean responses."""
    feeds = {}
    for subject, kept in zip(changed, kernels, strict=True):
        layer, node, kernel = subject.layer, nodes[subject.layer.name], kept.array
        change = (layer.weight - kernel).reshape(len(kernel), -1)
        weight = node.inputs[1]
        for use in subject.uses:
            bias = nodes[use.name].inputs[2]
            values = subject.biases[use.bias] + change @ subject.moments.means[use.bias]
            feeds[bias.name] = values.astype(element_type(bias))
        feeds[weight.name] = np.ascontiguousarray(in_layout_of(node, kernel), dtype=element_type(weight))
    return feeds
