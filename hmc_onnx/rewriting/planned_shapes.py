"""What a plan makes of the shapes of a network, without its weights: to be timed before or beside the repair."""

from __future__ import annotations

import numpy as np

from calib.runtime.observing import observe
from hmc_onnx.execution.context import Context
from hmc_onnx.profiling.candidate_times import Chain, Clock
from hmc_onnx.records.plan import LayerPlan, Plan
from hmc_onnx.records.profile import KEEP, REMOVED
from hmc_onnx.rewriting.pruning import Pruned, prune
from passes.decompose import DECOMPOSITIONS
from passes.graph.layers import Geometry, layer_of, replace_by_chain
from passes.graph.model import Model
from passes.graph.shapes import Shapes

__all__ = ["UNCHANGED", "layer_seconds", "shaped"]

UNCHANGED = (KEEP, REMOVED)


def shaped(context: Context, plan: Plan) -> Model:
    """A network of the planned shapes, to be timed: it is pruned, and its chains have random weights.

    Args:
        context: the run; its model is not changed.
        plan: a plan for this model.

    Raises:
        PlanError: as for `apply`.
    """
    model, kept, shapes = _pruned(context, plan)
    rng = np.random.default_rng(plan.settings.seed)
    every = {n.name: n for n in model.graph.nodes}
    for node in [n for n in model.graph.nodes if n.name in plan.layers and plan.layers[n.name].method not in UNCHANGED]:
        layer = layer_of(node, shapes)
        links = _links(layer.geometry, plan.layers[node.name])
        weights = [rng.standard_normal(link.weight_shape) / np.sqrt(link.features) for link in links]
        others = [every[use.name] for use in kept.uses[node.name][1:]]
        also = [(other, layer_of(other, shapes).bias) for other in others]
        replace_by_chain(model.graph, node, list(zip(links, weights, strict=True)), layer.bias, also)
    model.forget_shapes()
    model.tidy()
    return model


def layer_seconds(context: Context, plan: Plan) -> dict[str, tuple[float, float]]:
    """The seconds of each layer before and after, timed alone at the batch size that is served.

    Times that this machine's table has are taken from there. A layer is missing that onnxruntime cannot run alone, or
    that the plan removes.

    Args:
        context: the run; its model is not changed.
        plan: a plan for this model, whatever its target.

    Raises:
        PlanError: as for `apply`.
        SettingsError: the provider does not work here.
    """
    model, _, shapes = _pruned(context, plan)
    nodes = {n.name: n for n in model.graph.nodes}
    whole: dict[str, Chain] = {
        n: (s.layer.geometry,) for n, s in context.compressible.layers.items() if n in plan.layers
    }
    after = {
        name: _links(layer_of(nodes[name], shapes).geometry, plan.layers[name])
        for name in whole
        if plan.layers[name].method != REMOVED
    }
    clock = Clock(context)
    clock.measure((name, chain) for name, own in after.items() for chain in (whole[name], own))
    found = {name: (clock.seconds(name, whole[name]), clock.seconds(name, own)) for name, own in after.items()}
    return {name: (a, b) for name, (a, b) in found.items() if a is not None and b is not None}


def _pruned(context: Context, plan: Plan) -> tuple[Model, Pruned, Shapes]:
    model, inputs = context.normal.copy(), context.inputs
    kept = prune(model, plan, inputs)
    observe(model, inputs, plan.settings.runtime)
    return model, kept, model.shapes_at(inputs)


def _links(geometry: Geometry, step: LayerPlan) -> Chain:
    """What a layer of this geometry, after pruning, is made into."""
    return (geometry,) if step.method in UNCHANGED else DECOMPOSITIONS[step.method].links(geometry, step.rank)
