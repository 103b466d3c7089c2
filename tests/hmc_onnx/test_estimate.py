"""What a run is said to be about to do, against what it does."""

from __future__ import annotations

import pytest
from zoo import images, resnet

from hmc_onnx.planning import estimate as module
from hmc_onnx.planning.estimate import estimate
from hmc_onnx.records.settings import Settings
from hmc_onnx.run import Run

pytestmark = pytest.mark.usefixtures("few_iterations")


def made(**more: object) -> Run:
    settings = Settings(samples=16, kl_samples=8, positions=8, align=2, provider="cpu", threads=1, **more)
    return Run(resnet((1, 1), (4, 8), size=8, classes=5), {"input": images(16, 8)}, settings)


def test_what_is_counted_is_what_the_profile_has() -> None:
    run = made()
    found, profile = estimate(run), run.profile()
    assert (found.layers, found.groups) == (len(profile.layers), len(profile.groups))
    assert found.prunings == sum(len(g.choices) - 1 for g in profile.groups)
    whole = [c for layer in profile.layers for c in layer.choices if c.rank and c.measured]
    assert len(whole) <= found.decompositions  # the profile has the front of what is offered
    assert found.declined == profile.declined


def test_it_grows_with_what_is_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pass", lambda _: (0.01, 0.02))
    monkeypatch.setattr(module, "_decomposition", lambda *_: 1e-5)
    whole, part = estimate(made()), estimate(made(only=("*Gemm",)))
    assert whole.seconds > part.seconds > 0
    assert whole.memory > part.memory > 0
    assert estimate(made(latency=True)).seconds > whole.seconds
