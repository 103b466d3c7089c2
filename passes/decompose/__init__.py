"""Decompositions of a Conv, ConvTranspose or Gemm into a chain, and the pass that applies one."""

from passes.decompose.base import Decomposition, chain_macs, chain_parameters, compose, error
from passes.decompose.decompose_layer import DecomposeLayer
from passes.decompose.registry import DECOMPOSITIONS

__all__ = [
    "DECOMPOSITIONS",
    "DecomposeLayer",
    "Decomposition",
    "chain_macs",
    "chain_parameters",
    "compose",
    "error",
]
