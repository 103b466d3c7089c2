"""Applies a plan: removes channels, decomposes layers, and repairs every layer behind the first change in closed form.

The original and the compressed network are walked side by side. The weights of each layer are fitted by least squares
over the calibration images: from the layer's input in the *compressed* network to its response in the *original* one.
So a repair also compensates for the errors of the layers before it. If a layer ends a residual branch, and the shortcut
is computed already, the target is the original sum minus the compressed network's shortcut.

Nodes that share a weight are the uses of one layer, which is fitted once: the squared errors of all uses are summed,
and all nodes get the same initializers. It is fitted as soon as all layers before any of its uses have been. This
is exact where no use depends on another, as in a siamese network, or in a head that is applied at several scales. In a
recurrent application a use depends on an earlier one, and what it will read is not known yet. It is fitted to what it
reads in the original network, to which the compressed network comes close once it is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from calib.measure.walk import Walk
from calib.runtime.observing import observe
from hmc_onnx.execution.context import Context
from hmc_onnx.records.plan import LayerPlan, Plan
from hmc_onnx.records.profile import KEEP, REMOVED
from hmc_onnx.rewriting.fitting import Fit, fitted_bias
from hmc_onnx.rewriting.gathering import Use, Walks, fits
from hmc_onnx.rewriting.order import repair_order
from hmc_onnx.rewriting.pruning import Pruned, prune
from hmc_onnx.rewriting.rounding import rounded
from passes.core.blas import NARROW, one_blas_thread
from passes.core.errors import PlanError
from passes.decompose import DECOMPOSITIONS, compose, why_no_rank
from passes.graph.external import folder_of, let_go, move_out
from passes.graph.layers import OPERATORS, Layer, layer_of, replace_by_chain, why_not_a_layer, write_layer
from passes.graph.model import Model
from passes.graph.shapes import Shapes
from passes.graph.signature import same_signature

__all__ = ["apply", "repaired"]


def apply(context: Context, plan: Plan, most: int | None = None) -> onnx.ModelProto:
    """Apply a plan to the model of a run, and repair its layers.

    Args:
        context, plan, most: as of `repaired`.

    Returns:
        The compressed model, in float, with the signature of the original.

    Raises:
        PlanError: as for `repaired`.
        ModelError: the ONNX checker rejects the result.
    """
    compressed = repaired(context, plan, most)
    compressed.tidy()
    result = compressed.finished()
    same_signature(context.served, result)
    return result


def repaired(context: Context, plan: Plan, most: int | None = None, begun: Walk | None = None) -> Model:
    """The graph of a compressed model, in normal form, with its layers repaired.

    Args:
        context: the run; its model is not changed.
        plan: a plan for this model.
        most: upper bound on the layers that are repaired, the first of those behind the first change; default: all.
            Layers that the plan decomposes must be among them.
        begun: a walk over the run's images and its model that has come to no change of the plan; default: a new one.

    Raises:
        PlanError: the plan is for another model, or names layers, channels or ranks that the model does not have.
    """
    if plan.model != context.digest:
        raise PlanError("the plan was made for another model: plan again, or give the model it was made for")
    model, inputs = context.normal, context.inputs
    compressed, folder = model.copy(), folder_of(model.constants())
    kept = prune(compressed, plan, inputs)
    if folder is not None:
        move_out(compressed.constants(), folder)
    observe(compressed, inputs, context.runtime)
    shapes = compressed.shapes_at(inputs)
    walks = Walks(compressed, kept, plan, context, begun)
    every = {n.name: n for n in compressed.graph.nodes if n.op in OPERATORS}
    nodes = {name: node for name, node in every.items() if name in plan.layers}
    ordered = _in_order(model, nodes, plan, kept)
    for name in ordered:
        if name in nodes:
            _check_step(nodes[name], plan.layers[name], shapes, kept, bool(context.weight_levels))
    let_go(compressed.constants())
    order = repair_order(compressed.graph, {n: [use.name for use in kept.uses[n]] for n in ordered})
    # rounding to INT8 changes every layer; where nothing else does, that is left to the quantiser
    behind = _from_first_change(order, plan, kept, bool(context.weight_levels) and plan.changes)
    chosen = list(behind)[:most]
    for done, name in enumerate(chosen):
        context.progress("repair", done, len(chosen))
        uses = [Use(every[use.name], use.bias, use.name in order[name]) for use in kept.uses[name]]
        layer = layer_of(nodes[name], shapes)
        with one_blas_thread(layer.geometry.features <= NARROW):
            _repair(compressed, layer, uses, fits(layer, uses, shapes, walks), walks)
        if folder is not None:
            move_out(compressed.constants(), folder)
    let_go(model.constants())
    compressed.forget_shapes()
    return compressed


def _in_order(model: Model, nodes: Mapping[str, gs.Node], plan: Plan, kept: Pruned) -> list[str]:
    """Names of the plan's layers in graph order; raises PlanError unless exactly the removed ones are missing."""
    ordered = [n.name for n in model.graph.nodes if n.name in plan.layers]
    for name, layer in plan.layers.items():
        if name not in ordered:
            raise PlanError(f"the plan names a layer that the model does not have: '{name}'")
        first = next((n for n, uses in kept.uses.items() if any(use.name == name for use in uses)), name)
        if first != name:
            raise PlanError(f"layer '{name}' shares its weights with '{first}', and is changed with it: leave it out")
        if name not in kept.uses:
            why = kept.declined.get(name, "it is no Conv or Gemm")
            raise PlanError(f"the plan changes '{name}', which cannot be changed, as {why}: leave it out")
        if (layer.method == REMOVED) != (name not in nodes):
            raise PlanError(
                f"layer '{name}' must be removed if the plan removes all channels of a group that it reads or writes, "
                "and only then: remove both or neither"
            )
    return ordered


def _from_first_change(order: Iterable[str], plan: Plan, kept: Pruned, changed: bool) -> Iterator[str]:
    """Of layers in their order, those from the first that a plan changes on; removed ones have nothing to repair.

    `changed` says that the first layer is changed already.
    """
    for name in order:
        step = plan.layers[name]
        pruned = any(use.name in kept.touched for use in kept.uses[name])
        changed = changed or pruned or step.method != KEEP
        if changed and step.method != REMOVED:
            yield name


def _check_step(node: gs.Node, step: LayerPlan, shapes: Shapes, kept: Pruned, quantised: bool) -> None:
    """Check what a plan does to a layer whose channels are pruned, before the work; raises PlanError."""
    if why_not_a_layer(node, shapes):
        raise PlanError(f"the plan changes '{node.name}', which cannot be changed: leave it out")
    if step.in_float and not quantised:
        raise PlanError(
            f"layer '{node.name}' is to stay in float32, and nothing is served in INT8: leave 'in_float' out"
        )
    others = [use.name for use in kept.uses[node.name][1:]]
    if step.also and step.also != others:
        named = f"also {', '.join(others)}" if others else "at no other node"
        raise PlanError(f"the weights of layer '{node.name}' are used {named}: correct its 'also'")
    if step.method == KEEP:
        if step.rank:
            raise PlanError(
                f"layer '{node.name}' is kept and has rank {step.rank}: leave the rank out, or give a method"
            )
        return
    reason = why_no_rank(step.method, layer_of(node, shapes).geometry, step.rank)
    if reason is not None:
        raise PlanError(f"layer '{node.name}': {reason}")


def _repair(model: Model, layer: Layer, uses: Sequence[Use], groups: Sequence[Fit], walks: Walks) -> None:
    """Write the weights that fit into a layer, and decompose it as planned; a grouped Conv has a fit for each group."""
    node, step = uses[0].node, walks.plan.layers[uses[0].node.name]
    levels = 0 if step.in_float else walks.context.weight_levels
    own = np.split(layer.weight, len(groups))
    kernels = [fit.weight(w) for w, fit in zip(own, groups, strict=True)]
    if step.method == KEEP:
        if levels:
            kernels = [rounded(k, levels, fit.second) for k, fit in zip(kernels, groups, strict=True)]
        biases = [
            np.concatenate([fitted_bias(k, fit.moments.parts[i]) for k, fit in zip(kernels, groups, strict=True)])
            for i in range(groups[0].biases)
        ]
        also = [(use.node, biases[use.bias]) for use in uses[1:]]
        write_layer(model.graph, node, np.concatenate(kernels), biases[0], also)
        return
    (fit,) = groups
    decomposition = DECOMPOSITIONS[step.method]
    factors: Sequence[np.ndarray] = decomposition.factors(layer.geometry, kernels[0], fit.second, step.rank)
    links = decomposition.links(layer.geometry, step.rank)
    if levels:
        factors = [rounded(factor, levels) for factor in factors]
    biases = [fitted_bias(compose(links, factors), part) for part in fit.moments.parts]
    also = [(use.node, biases[use.bias]) for use in uses[1:]]
    replace_by_chain(model.graph, node, list(zip(links, factors, strict=True)), biases[0], also)
