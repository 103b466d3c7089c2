"""All decompositions by name. To add one, write a file with a `Decomposition`, and an entry here."""

from passes.decompose.base import Decomposition
from passes.decompose.cp import CP
from passes.decompose.input_svd import InputSVD
from passes.decompose.output_svd import OutputSVD
from passes.decompose.spatial_svd import SpatialSVD
from passes.decompose.tucker import Tucker2

__all__ = ["DECOMPOSITIONS"]

DECOMPOSITIONS: dict[str, Decomposition] = {d.name: d for d in (OutputSVD(), SpatialSVD(), Tucker2(), CP(), InputSVD())}
