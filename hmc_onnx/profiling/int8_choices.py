"""What INT8 costs a layer, and the layers that may stay in float32 in a network that is served in INT8.

Rounding adds to a layer's response the error of its weights and of its input, which are taken for uniform and
independent: for steps s_o of the weights of output o and a step Δ of the input,

    E = (Σ_o s_o² · tr(Sxx) + Δ² · ‖W‖²) / 12,

as a share of the response tr(W Sxx Wᵀ). What the network loses by that share is read off the layer's measured curve, as
for a decomposition that loses as much. Each link of a chain is rounded, so a chain loses the share once for each link.

A node stays in float32 only if onnxruntime lets it: of a Conv or Gemm between a DequantizeLinear and a QuantizeLinear,
it rounds the weights itself when it loads the model (its rewrite WeightBiasQuantization). So a single node may stay
only where it reads the model's input or writes its output; a chain of several nodes may stay everywhere. Chains are
offered in float32 only for layers with all their channels: a pruned layer has so many that their times would take
longer to measure than all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calib.runtime.quantisation import activation_step
from hmc_onnx.analysis.compressible import CompressibleLayer
from hmc_onnx.execution.context import Context
from hmc_onnx.profiling.candidate_times import Chain, Clock
from hmc_onnx.records.profile import REMOVED, LayerChoice
from hmc_onnx.search_space.layer_choices import Curve
from hmc_onnx.search_space.variants import Variant
from passes.decompose import DECOMPOSITIONS

__all__ = ["in_int8", "may_stay", "rounding_error", "times_in_float"]


def in_int8(
    context: Context,
    clock: Clock | None,
    layers: Mapping[str, CompressibleLayer],
    variants: Mapping[str, Sequence[Variant]],
    choices: Mapping[str, Sequence[LayerChoice]],
) -> dict[str, list[LayerChoice]]:
    """The choices of each layer with what rounding loses, and with their times in float32; by the layer's name.

    Args:
        context: the run, which is served in INT8.
        clock: its times, if latency is measured.
        layers: the layers with their moments.
        variants: the variants that the choices are of.
        choices: the choices as they are in float32.
    """
    chains = {n: [_links(c, variants[n]) for c in own] for n, own in choices.items()}
    timed = {n: [c for c in own if c] for n, own in chains.items()}
    times = {} if clock is None else times_in_float(context, clock, timed)
    found = {}
    for name, own in choices.items():
        curve = Curve([(c.error, c.sensitivity) for c in own if c.measured and c.rank])
        error = rounding_error(layers[name], context.weight_levels, context.runtime.name)
        seconds = times.get(name, {})
        found[name] = [
            c.model_copy(update={"rounding": curve(error * len(chain)), "float_seconds": seconds.get(chain)})
            for c, chain in zip(own, chains[name], strict=True)
        ]
    return found


def times_in_float(
    context: Context, clock: Clock, chains: Mapping[str, Sequence[Chain]]
) -> dict[str, dict[Chain, float]]:
    """Seconds of those chains that may stay in float32 in a network in INT8, by layer name; unknown ones are measured.

    There are none where the network is not served in INT8, and none of a chain that could not be timed.
    """
    if not context.weight_levels:
        return {name: {} for name in chains}
    layers = context.compressible.layers
    floats = {n: [c for c in own if may_stay(context, layers[n], c)] for n, own in chains.items()}
    clock.measure(((n, c) for n, own in floats.items() for c in own), in_float=True)
    return {n: clock.times_in_float(n, own) for n, own in floats.items()}


def may_stay(context: Context, subject: CompressibleLayer, chain: Chain) -> bool:
    """Whether a chain may stay in float32 in a network in INT8: onnxruntime leaves it so, and it has all channels."""
    if len(chain) > 1:
        whole = subject.layer.geometry
        return (chain[0].inputs, chain[-1].outputs) == (whole.inputs, whole.outputs)
    graph = context.normal.graph
    ends = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    return all(use.input in ends or use.output in ends for use in subject.uses)


def rounding_error(subject: CompressibleLayer, levels: int, provider: str) -> float:
    """The share of a layer's response (squared) that rounding its weights and its input to INT8 loses.

    0 for a grouped Conv, of whose patches there are no moments.

    Args:
        subject: the layer, with its moments.
        levels: the largest integer of the weights' grid.
        provider: onnxruntime's name of the provider that will run the model.
    """
    second = subject.moments.second.array
    if not len(second):
        return 0.0
    flat = subject.layer.weight.reshape(len(subject.layer.weight), -1)
    response = float(np.vdot(flat, flat @ second))
    steps = np.abs(flat).max(1) / levels
    step = activation_step(subject.moments.low, subject.moments.high, provider)
    error = float((steps**2).sum() * np.trace(second) + step**2 * np.vdot(flat, flat)) / 12
    return error / max(response, np.finfo(float).tiny)


def _links(choice: LayerChoice, variants: Sequence[Variant]) -> Chain:
    """The chain of a choice; none for a layer that is removed."""
    if choice.method == REMOVED:
        return ()
    geometry = next(v.geometry for v in variants if (v.inputs, v.outputs) == (choice.inputs, choice.outputs))
    return (geometry,) if not choice.rank else DECOMPOSITIONS[choice.method].links(geometry, choice.rank)
