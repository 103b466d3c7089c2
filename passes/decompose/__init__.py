"""Decompositions: a Conv or Gemm becomes a chain of smaller ones.

To add one, write a `Decomposition` in a file of its own and add it to `DECOMPOSITIONS` below. Then name the geometries
that it is for in `APPLIES` of tests/passes/test_decompose.py.
"""

from passes.decompose.base import Decomposition, chain_macs, chain_parameters, compose, error
from passes.decompose.cp import CP
from passes.decompose.output_svd import OutputSVD
from passes.decompose.spatial_svd import SpatialSVD
from passes.decompose.tucker import Tucker2

__all__ = [
    "DECOMPOSITIONS",
    "Decomposition",
    "chain_macs",
    "chain_parameters",
    "compose",
    "error",
]

DECOMPOSITIONS: dict[str, Decomposition] = {d.name: d for d in (OutputSVD(), SpatialSVD(), Tucker2(), CP())}
