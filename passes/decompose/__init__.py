"""Decompositions of a Conv, ConvTranspose or Gemm into a chain; `passes.decompose.decompose_layer` is the pass."""

from passes.decompose.base import Decomposition, Problem, chain_macs, chain_parameters, compose, error
from passes.decompose.registry import DECOMPOSITIONS, why_no_rank

__all__ = [
    "DECOMPOSITIONS",
    "Decomposition",
    "Problem",
    "chain_macs",
    "chain_parameters",
    "compose",
    "error",
    "why_no_rank",
]
