"""What is found to be compressed."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from zoo import Builder

from hmc_onnx.analysis.subjects import find_subjects
from hmc_onnx.execution.executor import _BACKENDS
from hmc_onnx.records.settings import Settings
from hmc_onnx.run import Run
from hmc_onnx.search_space.candidates import whole_offers
from passes.decompose import DECOMPOSITIONS, chain_macs
from passes.graph.cost import costs, total
from passes.normal_form.normalise import normalise


def test_a_gate_of_dense_layers_in_nhwc_leaves_the_channels_open() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    gate = b.mean(b.node("Transpose", x, perm=[0, 2, 3, 1]), (1, 2), keepdims=1)
    gate = b.node("Relu", b.matmul(gate, 8, 4, at="down"))
    gate = b.node("Sigmoid", b.matmul(gate, 4, 8, at="up"))
    x = b.node("Mul", x, b.node("Transpose", gate, perm=[0, 3, 1, 2]))
    model = normalise(b.model(b.conv(x, 8, 4, at="head")))
    found = find_subjects(model, {"input": (1, 3, 8, 8)})
    assert set(found.groups) == {"stem/Conv", "down/MatMul"}
    assert set(found.layers) == {"stem/Conv", "down/MatMul", "up/MatMul", "head/Conv"}


def folded(crops: int = 4) -> onnx.ModelProto:
    """Crops of an image folded into the batch, and their scores averaged."""
    b = Builder()
    x = b.node("Reshape", "input", b.const([-1, 3, 8, 8]))
    x = b.node("Relu", b.conv(x, 3, 8, at="stem"))
    x = b.node("Relu", b.conv(x, 8, 16, at="second"))
    each = b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 16, 5)
    each = b.node("Reshape", each, b.const([-1, crops, 5]))
    return b.model({b.gemm(b.mean(each, (1,)), 5, 5, at="mix"): ["N", 5]}, ("N", crops, 3, 8, 8))


@pytest.mark.parametrize("images", [1, 3])
def test_a_layer_counts_for_as_many_maps_as_it_sees(images: int) -> None:
    model, inputs = normalise(folded()), {"input": (images, 4, 3, 8, 8)}
    found, cost = find_subjects(model, inputs), costs(model, inputs)
    assert {name: s.maps for name, s in found.layers.items()} == {
        "stem/Conv": 4,
        "second/Conv": 4,
        "fc/Gemm": 4,
        "mix/Gemm": 1,
    }
    for name, subject in found.layers.items():
        assert subject.macs() == cost[name].macs
        offered = whole_offers(subject, 1)
        assert all(o.macs == chain_macs(o.links, subject.size) * subject.maps for o in offered)


def test_shares_are_right_of_crops_that_are_folded_into_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BACKENDS, "processes", contextlib.nullcontext)
    for slow in ("cp", "tucker"):
        monkeypatch.delitem(DECOMPOSITIONS, slow)
    x = np.random.default_rng(0).normal(size=(32, 4, 3, 8, 8)).astype(np.float32)
    run = Run(folded(), {"input": x}, Settings(align=1, samples=32, kl_samples=16))
    before = total(normalise(run.served), run.inputs).macs
    for share in (0.9, 0.6):
        plan = run.plan(f"macs={share}")
        assert plan.macs == total(normalise(run.apply(plan)), run.inputs).macs
        assert share - 0.1 < plan.macs / before <= share
