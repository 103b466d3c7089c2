"""What tests of plans for a share of the time share: a clock that follows the MACs, two networks, and a profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import pytest
from planned import SETTINGS, calibration
from zoo import resnet

import hmc_onnx
from calib.measure.latency import Measurement
from calib.runtime.sessions import Runtime
from passes.core.progress import Progress, silent
from passes.probe import Probe


def told(
    probes: Sequence[Probe], runtime: Runtime, progress: Progress = silent
) -> Iterator[tuple[Probe, Measurement | None]]:
    """Times that follow the MACs and the number of kernels: what is measured in passing is now and then all noise."""
    yield from ((p, Measurement(1e-6 * len(p.links) + 1e-9 * p.macs, 0.0)) for p in probes)


@pytest.fixture(scope="module", autouse=True)
def _clock(few_iterations: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calib.measure.latency_table.time_probes", told)
        patch.setattr("hmc_onnx.profiling.candidate_times.kernel_times", lambda *_: None)  # which would contradict
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def original() -> onnx.ModelProto:
    return resnet((2, 2), (8, 16), size=8, classes=5)


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    """For what does not depend on the network."""
    return resnet((1,), (8,), size=8, classes=5)


@pytest.fixture(scope="module")
def profile(original: onnx.ModelProto) -> hmc_onnx.Profile:
    return hmc_onnx.profile(original, calibration(), SETTINGS)
