"""Layers in INT8: what rounding them loses, which of them may stay in float32, and which of them do in a plan."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from zoo import Builder, images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.latency_table import Machine
from calib.measure.moments import Moments
from calib.runtime.quantisation import quantise_for_timing
from calib.runtime.sessions import Session
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.program import Program, solve
from hmc_onnx.profiling.int8_choices import may_stay, rounding_error
from hmc_onnx.records.goal import Target
from hmc_onnx.records.profile import KEEP, LatencyProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.settings import Settings
from hmc_onnx.rewriting.applying import apply
from passes.core.shelf import MEMORY
from passes.decompose import DECOMPOSITIONS

SETTINGS = Settings(samples=16, precision="int8", provider="cpu", threads=1, align=4)
CPU = "CPUExecutionProvider"


def context(proto: onnx.ModelProto | None = None, settings: Settings = SETTINGS) -> Context:
    return Context(
        proto or resnet((1, 1), (8, 16), size=8), CalibrationData({"input": images(16, 8)}, None, ""), settings
    )


def profile(layers: int = 3) -> Profile:
    """Layers that may be kept or decomposed, in INT8 or, but for the last one, in float32; times are in seconds."""
    rng = np.random.default_rng(0)
    found = []
    for n in range(layers):
        choices = []
        for rank in (0, 1, 2):
            seconds = float(rng.integers(1, 9)) + (10 if rank == 0 else 0)
            choices.append(
                LayerChoice(
                    inputs=0,
                    outputs=0,
                    method="svd" if rank else KEEP,
                    rank=rank,
                    macs=100 - 20 * rank,
                    parameters=1,
                    seconds=seconds,
                    error=0.0,
                    sensitivity=0.2 + float(rng.random()) if rank else 0.0,
                    measured=True,
                    rounding=0.2 * float(rng.random()),
                    float_seconds=seconds + float(rng.integers(-1, 4)) if n < layers - 1 else None,
                )
            )
        found.append(
            LayerProfile(name=f"l{n}", input_group=None, output_group=None, macs=100, parameters=1, choices=choices)
        )
    machine = Machine(processor="", threads=1, provider="", onnxruntime="")
    whole = sum(layer.choices[0].seconds or 0 for layer in found)
    return Profile(
        model="m",
        align=1,
        data="d",
        settings=SETTINGS,
        macs=100 * layers,
        parameters=layers,
        latency=LatencyProfile(
            machine=machine, batch=1, seconds=2 * whole, uncertainty=0, unchanged=whole, table="", by_macs=[]
        ),
        groups=[],
        layers=[layer.model_copy(update={"seconds": layer.choices[0].seconds}) for layer in found],
        declined={},
    )


@pytest.mark.parametrize("share", [0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
def test_a_plan_for_a_time_is_the_best_combination_of_ranks_and_precisions(share: float) -> None:
    own = profile()
    assert own.latency is not None
    limit, best = share * own.latency.seconds, np.inf
    options = [
        [(c.seconds or 0.0, c.sensitivity + c.rounding) for c in layer.choices]
        + [(c.float_seconds, c.sensitivity) for c in layer.choices if c.float_seconds is not None]
        for layer in own.layers
    ]
    for taken in itertools.product(*options):
        if sum(seconds for seconds, _ in taken) <= limit:
            best = min(best, sum(nats for _, nats in taken))
    if not np.isfinite(best):
        with pytest.raises(hmc_onnx.SettingsError, match="below what strategy 'hmc' can reach"):
            solve(own, Target(latency=share))
        return
    plan = solve(own, Target(latency=share))
    assert plan.sensitivity == pytest.approx(best, rel=1e-3)
    assert plan.latency is not None and plan.latency.expected <= share + 1e-9
    assert set(plan.in_float) == {n for n, layer in plan.layers.items() if "in float32, as" in layer.reason}
    assert "l2" not in plan.in_float


def test_some_of_these_plans_leave_layers_in_float32() -> None:
    plans = [solve(profile(), Target(latency=share)) for share in (0.3, 0.35, 0.4, 0.45)]
    assert any(plan.in_float for plan in plans)
    assert all(("in float32" in plan.explain()) == bool(plan.in_float) for plan in plans)


def test_only_a_bound_on_the_time_leaves_layers_in_float32() -> None:
    """Without one, float32 would cost nothing."""
    assert not solve(profile(), Target(macs=0.8)).in_float


def test_where_the_target_is_met_by_int8_alone_nothing_is_changed() -> None:
    plan = solve(profile(), Target(latency=0.6))
    assert not plan.changes and not plan.in_float


def test_a_profile_in_float32_offers_nothing_twice() -> None:
    own = profile()
    layers = [
        layer.model_copy(update={"choices": [c.model_copy(update={"float_seconds": None}) for c in layer.choices]})
        for layer in own.layers
    ]
    assert not Program(own.model_copy(update={"layers": layers})).in_float.any()
    assert Program(own).in_float.any()


@pytest.mark.parametrize("levels", [64, 127])
def test_the_error_of_rounding_is_that_of_weights_and_inputs_on_their_grids(levels: int) -> None:
    rng = np.random.default_rng(0)
    subject = next(s for s in context().compressible.layers.values() if s.layer.geometry.kernel)
    weight = subject.layer.weight.reshape(len(subject.layer.weight), -1)
    patches = rng.normal(size=(20_000, weight.shape[1])) * rng.uniform(0.5, 2, weight.shape[1])
    moments = Moments()
    moments.update(patches)
    found = rounding_error(replace(subject, moments=moments.centred(MEMORY)), levels, CPU)

    steps = np.abs(weight).max(1, keepdims=True) / levels
    step = (patches.max() - patches.min()) / 255
    exact = patches @ weight.T
    off = np.round(patches / step) * step @ (np.round(weight / steps) * steps).T - exact
    assert found == pytest.approx(off.var(0).sum() / exact.var(0).sum(), rel=0.25)


def test_without_moments_no_error_is_known() -> None:
    subject = next(iter(context().compressible.layers.values()))
    assert rounding_error(subject, 127, CPU) == 0.0


def test_the_ends_of_a_network_and_chains_may_stay_in_float32() -> None:
    own = context()
    single = {n: may_stay(own, s, (s.layer.geometry,)) for n, s in own.compressible.layers.items()}
    assert [n for n, may in single.items() if may] == [next(iter(single)), list(single)[-1]]
    for subject in own.compressible.layers.values():
        whole = subject.layer.geometry
        assert may_stay(own, subject, (whole,) * 2)
        assert not may_stay(own, subject, (whole.resized(whole.inputs, 4),) * 2)


def kernels(proto: onnx.ModelProto) -> Counter[str]:
    """The kernels of a run by operator, Convs and Gemms alone."""
    session = Session(proto, SETTINGS.runtime, profiled=True)
    session.run({"input": images(1, 8)})
    ops = Counter(k.op for k in session.profile())
    return Counter({op: n for op, n in ops.items() if "Conv" in op or "Gemm" in op or "MatMul" in op})


def chained(links: int) -> tuple[onnx.ModelProto, list[str]]:
    """Three Convs, of which the middle one is a chain; and the names of the nodes of that."""
    b = Builder()
    x = b.conv("input", 3, 8)
    names = []
    for _ in range(links):
        x = b.conv(x, 8, 8)
        names.append(b.nodes[-1].name)
    x = b.conv(b.node("Relu", x), 8, 8)
    return b.model(b.mean(x)), names


@pytest.mark.parametrize(("links", "in_float"), [(1, 0), (2, 2), (3, 3)])
def test_onnxruntime_leaves_chains_in_float32_and_single_nodes_not(links: int, in_float: int) -> None:
    """If this fails for one link, onnxruntime no longer rounds the weights itself, and `may_stay` can allow more."""
    proto, names = chained(links)
    found = kernels(quantise_for_timing(proto, CPU, names))
    float_kernels = sum(n for op, n in found.items() if op in ("Conv", "FusedConv"))
    assert float_kernels == in_float or (links == 1 and weights_rounded(proto, names))


def weights_rounded(proto: onnx.ModelProto, names: Sequence[str]) -> bool:
    session = Session(quantise_for_timing(proto, CPU, names), SETTINGS.runtime, profiled=True)
    session.run({"input": images(1, 8)})
    return any(k.op == "DequantizeLinear" and "weight" in k.name for k in session.profile())


def test_layers_that_a_plan_leaves_in_float32_keep_their_weights_and_the_others_are_rounded() -> None:
    own = context()
    run = hmc_onnx.Run(resnet((1, 1), (8, 16), size=8), [images(16, 8)], SETTINGS)
    plan = run.plan("macs=0.8")
    first = next(n for n, layer in plan.layers.items() if layer.method == KEEP)
    floats = {first: plan.layers[first].model_copy(update={"in_float": True})}
    mixed = plan.model_copy(update={"layers": plan.layers | floats})
    assert mixed.in_float == [first]
    rounded, kept = (own_weight(run.apply(p), first) for p in (plan, mixed))
    assert on_grid(rounded, own.weight_levels) and not on_grid(kept, own.weight_levels)
    served = run.serve(run.apply(mixed), mixed)
    np.testing.assert_array_equal(own_weight(served, first), kept)  # no Q and DQ before it


def own_weight(proto: onnx.ModelProto, name: str) -> np.ndarray:
    held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    node = next(n for n in proto.graph.node if n.name == name)
    return held[node.input[1]]


def on_grid(weight: np.ndarray, levels: int) -> bool:
    counts = weight / (np.abs(weight).max((1, 2, 3), keepdims=True) / levels)
    return bool(np.allclose(counts, np.round(counts), atol=1e-3))


def test_the_nodes_of_a_decomposed_layer_stay_in_float32_together() -> None:
    run = hmc_onnx.Run(resnet((1, 1), (8, 16), size=8), [images(16, 8)], SETTINGS)
    plan = run.plan("macs=0.6", "lowrank")
    chosen = [n for n, layer in plan.layers.items() if layer.method in DECOMPOSITIONS]
    floats = {n: plan.layers[n].model_copy(update={"in_float": True}) for n in chosen}
    plan = plan.model_copy(update={"layers": plan.layers | floats})
    compressed = apply(run, plan)
    served = run.serve(compressed, plan)
    own = [n.name for n in compressed.graph.node if any(n.name.startswith(f"{c}/") for c in chosen)]
    assert len(own) > len(chosen) > 0
    held = {t.name: t.data_type for t in served.graph.initializer}
    for node in served.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert (held.get(node.input[1]) == onnx.TensorProto.FLOAT) == (node.name in own)
