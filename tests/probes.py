"""Probes for tests."""

from __future__ import annotations

from passes.graph.layers import Geometry
from passes.probe import Probe


def probe(inputs: int = 16, outputs: int = 16, size: int = 8, *follows: str) -> Probe:
    """A 3×3 Conv."""
    return Probe((Geometry(inputs, outputs, (3, 3), (1, 1), (1,) * 4, (1, 1)),), (size, size), 1, epilogue=follows)
