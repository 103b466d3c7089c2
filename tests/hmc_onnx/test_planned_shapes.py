"""Shapes that a plan makes, and the times of its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.latency import Measurement
from hmc_onnx.profiling.candidate_times import Clock
from hmc_onnx.rewriting.planned_shapes import shaped
from passes.graph.layers import Geometry
from passes.probe import Probe

SETTINGS = hmc_onnx.Settings(samples=16, kl_samples=16, positions=4, align=2, chunk=16, threads=1, batch=4)


def weights(proto: onnx.ModelProto) -> Counter[tuple[int, ...]]:
    """The shapes of the weights of layers, and how often each occurs."""
    dims = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    return Counter(dims[n.input[1]] for n in proto.graph.node if n.op_type in ("Conv", "Gemm"))


@pytest.fixture
def run(coarse_candidates: None, few_iterations: None) -> hmc_onnx.Run:
    data = CalibrationData({"input": images(16, 8)}, None, "noise")
    return hmc_onnx.Run(resnet((1, 1), (8, 16), size=8, classes=5), data, SETTINGS)


def test_the_network_that_is_timed_has_the_shapes_of_the_one_that_is_made(run: hmc_onnx.Run) -> None:
    plans = [run.plan("macs=0.5", strategy) for strategy in ("prune", "lowrank")]
    assert any(g.removed for g in plans[0].groups.values()) and any(step.rank for step in plans[1].layers.values())
    for plan in plans:
        assert weights(shaped(run, plan).finished()) == weights(run.apply(plan))


def test_each_layer_is_timed_as_it_was_and_as_it_is(run: hmc_onnx.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def calm(probes: list[Probe], *_: object) -> Iterator[tuple[Probe, Measurement]]:
        """Times that cannot drown in their noise, as those of layers of microseconds now and then would."""
        yield from ((p, Measurement(1e-9 * (p.macs + 1), 0.0)) for p in probes)

    monkeypatch.setattr("calib.measure.latency_table.time_probes", calm)
    plan, asked = run.plan("macs=0.5"), list[tuple[str, tuple[Geometry, ...]]]()
    measure = Clock.measure
    monkeypatch.setattr(Clock, "measure", lambda self, chains: measure(self, asked.extend(given := [*chains]) or given))
    found = run.layer_seconds(plan)
    assert found.keys() == plan.layers.keys()
    assert all(np.isfinite(pair).all() and min(pair) > 0 for pair in found.values())
    after = Counter(link.weight_shape for _, chain in asked[1::2] for link in chain)
    assert after == weights(run.apply(plan))
