"""Applies a plan: removes channels, decomposes layers, and repairs every layer behind the first change in closed form.

The original and the compressed network are walked side by side. The weights of each layer are fitted by least squares
over the calibration images: from the layer's input in the *compressed* network to its response in the *original* one.
So a repair also compensates for the errors of the layers before it. If a layer ends a residual branch, and the shortcut
is computed already, the target is the original sum minus the compressed network's shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from calib.measure.moments import sample_positions, sampled_outputs, sampled_patches
from calib.measure.walk import Walk
from calib.runtime.observing import observe
from hmc_onnx.analysis.subjects import find_subjects
from hmc_onnx.execution.context import Context
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import KEEP, REMOVED
from hmc_onnx.rewriting.fitting import Fit, fitted_bias
from hmc_onnx.rewriting.rounding import rounded
from passes.branches import remove_branch
from passes.channels import ChannelGroup
from passes.core.errors import PlanError
from passes.decompose import DECOMPOSITIONS, compose
from passes.graph.cost import images_of, maps_an_image
from passes.graph.external import folder_of, let_go, move_out
from passes.graph.layers import OPERATORS, Layer, layer_of, replace_by_chain, why_not_a_layer, write_layer
from passes.graph.model import Model
from passes.graph.shapes import Shapes
from passes.graph.signature import same_signature
from passes.residual import residual_sum

__all__ = ["apply", "shaped"]

UNCHANGED = (KEEP, REMOVED)


def apply(context: Context, plan: Plan) -> onnx.ModelProto:
    """Apply a plan to the model of a run, and repair its layers.

    Args:
        context: the run; its model is not changed.
        plan: a plan for this model.

    Returns:
        The compressed model, in float, with the signature of the original.

    Raises:
        PlanError: the plan is for another model, or names layers, channels or ranks that the model does not have.
        ModelError: the ONNX checker rejects the result.
    """
    if plan.model != context.digest:
        raise PlanError("the plan was made for another model: plan again, or give the model it was made for")
    model, inputs, runtime = context.normal, context.inputs, context.runtime
    compressed, folder = model.copy(), folder_of(model.constants())
    kept = _prune(compressed, plan, inputs)
    if folder is not None:
        move_out(compressed.constants(), folder)
    observe(compressed, inputs, runtime)
    shapes = compressed.shapes_at(inputs)
    original, changing = (Walk(m, context.chunks, runtime, context.memory // 2) for m in (model, compressed))
    walks = _Walks(original, changing, kept, plan, context.weight_levels, images_of(inputs))
    nodes = {n.name: n for n in compressed.graph.nodes if n.op in OPERATORS and n.name in plan.layers}
    changed = bool(walks.levels)  # rounding changes every layer
    for done, name in enumerate(_in_order(model, nodes, plan)):
        context.progress("repair", done, len(plan.layers))
        if plan.layers[name].method == REMOVED:
            changed = True
            continue
        node = nodes[name]
        if why_not_a_layer(node, shapes):
            raise PlanError(f"the plan changes '{node.name}', which cannot be changed: leave it out")
        step = plan.layers[node.name]
        pruned = node.name in kept.touched
        changed = changed or pruned or step.method != KEEP
        if changed:
            _repair(compressed, node, shapes, walks, step.method, step.rank)
            if folder is not None:
                move_out(compressed.constants(), folder)
    let_go(model.constants())
    compressed.forget_shapes()
    compressed.tidy()
    result = compressed.finished()
    same_signature(context.served, result)
    return result


def shaped(context: Context, plan: Plan) -> Model:
    """A network of the planned shapes, to be timed: it is pruned, and its chains have random weights.

    Args:
        context: the run; its model is not changed.
        plan: a plan for this model.

    Raises:
        PlanError: as for `apply`.
    """
    model, inputs = context.normal.copy(), context.inputs
    _prune(model, plan, inputs)
    observe(model, inputs, plan.settings.runtime)
    shapes = model.shapes_at(inputs)
    rng = np.random.default_rng(plan.settings.seed)
    for node in [n for n in model.graph.nodes if n.name in plan.layers and plan.layers[n.name].method not in UNCHANGED]:
        layer, step = layer_of(node, shapes), plan.layers[node.name]
        links = DECOMPOSITIONS[step.method].links(layer.geometry, step.rank)
        weights = [rng.standard_normal(link.weight_shape) / np.sqrt(link.features) for link in links]
        replace_by_chain(model.graph, node, list(zip(links, weights, strict=True)), layer.bias)
    model.forget_shapes()
    model.tidy()
    return model


def _in_order(model: Model, nodes: Mapping[str, gs.Node], plan: Plan) -> list[str]:
    """Names of the plan's layers in graph order; raises PlanError unless exactly the removed ones are missing."""
    ordered = [n.name for n in model.graph.nodes if n.name in plan.layers]
    for name, layer in plan.layers.items():
        if name not in ordered:
            raise PlanError(f"the plan names a layer that the model does not have: '{name}'")
        if (layer.method == REMOVED) != (name not in nodes):
            raise PlanError(
                f"layer '{name}' must be removed if the plan removes all channels of a group that it reads or writes, "
                "and only then: remove both or neither"
            )
    return ordered


@dataclass(frozen=True)
class _Kept:
    """The result of pruning: masks of the original's output channels that each layer keeps; and the pruned layers."""

    outputs: dict[str, np.ndarray]
    touched: set[str]


def _prune(model: Model, plan: Plan, inputs: dict[str, tuple[int, ...]]) -> _Kept:
    channels = find_subjects(model, inputs, plan.settings.selection).channels
    known = {g.name: g for g in channels.groups}
    removed: dict[str, np.ndarray] = {}
    gone: list[ChannelGroup] = []
    for name, group in plan.groups.items():
        if name not in known or known[name].size != group.size:
            raise PlanError(f"the plan names a channel group that the model does not have: '{name}'")
        if any(not 0 <= c < group.size for c in group.removed):
            raise PlanError(f"the plan removes channels of '{name}' that it does not have: it has {group.size}")
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
    return _Kept(outputs, touched)


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


@dataclass
class _Walks:
    original: Walk
    compressed: Walk
    kept: _Kept
    plan: Plan
    levels: int
    """The largest integer of the weights' INT8 grid; 0 in other precisions."""
    batch: int
    """The number of images for which the shapes are inferred."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.plan.settings.seed)
        self.nodes = {n.name: n for n in self.original.model.graph.nodes}


def _repair(model: Model, node: gs.Node, shapes: Shapes, walks: _Walks, method: str, rank: int) -> None:
    """Fit a layer to the compressed network's input and decompose it as planned; a grouped Conv is fitted by groups."""
    layer = layer_of(node, shapes)
    groups = _fits(layer, node, shapes, walks)
    own = np.split(layer.weight, len(groups))
    kernels = [fit.weight(w) for w, fit in zip(own, groups, strict=True)]
    if method == KEEP:
        if walks.levels:
            kernels = [rounded(k, walks.levels, fit.moments.second) for k, fit in zip(kernels, groups, strict=True)]
        weight = np.concatenate(kernels)
        bias = np.concatenate([fitted_bias(k, fit.moments) for k, fit in zip(kernels, groups, strict=True)])
        write_layer(model.graph, node, weight, bias)
        return
    moments = groups[0].moments
    decomposition = DECOMPOSITIONS.get(method)
    if decomposition is None:
        raise PlanError(f"layer '{node.name}': unknown method '{method}', use keep or {', '.join(DECOMPOSITIONS)}")
    reason = decomposition.why_not(layer.geometry)
    if reason or not 1 <= rank <= decomposition.max_rank(layer.geometry):
        most = decomposition.max_rank(layer.geometry) if reason is None else 0
        raise PlanError(f"layer '{node.name}': {method} of rank {rank} does not apply: {reason or f'1 to {most} do'}")
    factors: Sequence[np.ndarray] = decomposition.factors(layer.geometry, kernels[0], moments.second, rank)
    links = decomposition.links(layer.geometry, rank)
    if walks.levels:
        factors = [rounded(factor, walks.levels) for factor in factors]
    bias = fitted_bias(compose(links, factors), moments)
    replace_by_chain(model.graph, node, list(zip(links, factors, strict=True)), bias)


def _fits(layer: Layer, node: gs.Node, shapes: Shapes, walks: _Walks) -> list[Fit]:
    """Fits of the compressed network's patches to the original's responses at the same positions, one a group."""
    settings = walks.plan.settings
    keep = walks.kept.outputs.get(layer.name, slice(None))  # all channels where the layer is in no channel group
    shortcut = _shortcut(node, shapes, walks)
    also = [shortcut.name] if shortcut else []
    walks.compressed.advance([layer.input, *also])
    walks.original.advance([walks.nodes[layer.name].outputs[0].name, *also])
    size = tuple(d for d in shapes[layer.input][2:] if d is not None)
    positions = sample_positions(layer.geometry, size, settings.positions, walks.rng)
    geometry = layer.geometry.one_group()
    images = walks.compressed.images
    maps = maps_an_image(shapes[layer.input], len(size), walks.batch)
    patches = len(positions) * maps * sum(images)
    groups = [Fit(geometry.features, patches) for _ in range(layer.geometry.groups)]
    held = walks.compressed.chunks
    answers = walks.original.chunks
    for mine, theirs, count in zip(held, answers, images, strict=True):
        target = sampled_outputs(theirs[layer.output], positions)[:, keep]
        if shortcut:
            target = target + sampled_outputs(shortcut.of(theirs), positions)[:, keep]
            target = target - sampled_outputs(shortcut.of(mine), positions)
        inputs = np.split(mine[layer.input], len(groups), axis=1)
        for fit, x, t in zip(groups, inputs, np.split(target, len(groups), axis=1), strict=True):
            fit.update(sampled_patches(x, geometry, positions), t, count)
    return groups


@dataclass(frozen=True)
class _Shortcut:
    """Name of the other term of a residual sum, and the axis permutation that aligns it with the layer's output."""

    name: str
    order: tuple[int, ...]

    def of(self, chunk: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.transpose(chunk[self.name], self.order)


def _shortcut(node: gs.Node, shapes: Shapes, walks: _Walks) -> _Shortcut | None:
    """The other term of the sum that a layer's output enters, if no layer still has to run for it in either network."""
    joined = residual_sum(walks.compressed.model.graph, node, shapes)
    if joined is None:
        return None
    name = str(joined.other.name)
    if any(n.op in OPERATORS for walk in (walks.compressed, walks.original) for n in walk.missing(name)):
        return None
    return _Shortcut(name, joined.order)
