"""The alignment that follows from times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from zoo import images, parsed

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.latency import Measurement
from calib.measure.latency_table import LatencyTable, this_machine
from passes.core.errors import HmcWarning
from passes.probe import Probe

SETTINGS = hmc_onnx.Settings(samples=16, latency=True, provider="cpu", threads=1)
# The first Conv has the most MACs, as in the ResNets for ImageNet.
NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 3, 16, 16] input) => (float[N, 16, 8, 8] output) {
    a = Conv <kernel_shape = [7, 7], pads = [3, 3, 3, 3]> (input, w0)
    b = Relu(a)
    output = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (b, w1)
}"""


def made(settings: hmc_onnx.Settings) -> hmc_onnx.Run:
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 7, 7), "w1": (16, 16, 3, 3)}
    proto = parsed(NETWORK, **{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    return hmc_onnx.Run(proto, CalibrationData({"input": images(16)}, None, "noise"), settings)


@pytest.mark.parametrize("step", [4, 16, 64])
def test_the_alignment_is_the_step_of_the_staircase_and_is_not_looked_for_on_the_first_layer(
    step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the times of one staircase are not those of the next
    timed: list[Probe] = []

    def stairs(probes: list[Probe], *_: object) -> Iterator[tuple[Probe, Measurement]]:
        for probe in probes:
            timed.append(probe)
            yield probe, Measurement(math.ceil(probe.links[0].outputs / step) * step, 0.0)

    monkeypatch.setattr("calib.measure.latency_table.time_probes", stairs)
    run = made(SETTINGS)
    assert run.clock is not None and run.clock.align() == step
    assert {probe.links[0].kernel for probe in timed} == {(3, 3)}


def test_a_table_of_another_machine_that_does_not_tell_the_alignment_is_named() -> None:
    table = LatencyTable(machine=this_machine(SETTINGS.runtime))
    run = made(SETTINGS.model_copy(update={"latency_table": table}))
    assert run.clock is not None
    with pytest.warns(HmcWarning, match="does not tell which numbers of channels pay"):
        assert run.clock.align() == 4
