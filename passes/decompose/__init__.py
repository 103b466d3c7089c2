"""Decompositions of a Conv or Gemm into a chain. A new one is a file with a `Decomposition` and a line here."""

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
