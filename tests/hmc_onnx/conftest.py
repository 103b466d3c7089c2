"""What the tests of whole runs share."""

from __future__ import annotations

import pytest

from passes.decompose import DECOMPOSITIONS


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the channels, or an SVD of half the MACs: for tests of many graphs, not of the choice among many."""
    for constant in ("pruning_steps.SHARES", "candidates.RATIOS", "candidates.RATIOS_WHEN_PRUNED"):
        monkeypatch.setattr(f"hmc_onnx.search_space.{constant}", (0.5,))
    for name in set(DECOMPOSITIONS) - {"svd"}:
        monkeypatch.delitem(DECOMPOSITIONS, name)
