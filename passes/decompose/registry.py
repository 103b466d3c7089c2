"""All decompositions by name. To add one, write a file with a `Decomposition`, and an entry here."""

from numbers import Integral

from passes.decompose.base import Decomposition
from passes.decompose.cp import CP
from passes.decompose.input_svd import InputSVD
from passes.decompose.output_svd import OutputSVD
from passes.decompose.spatial_svd import SpatialSVD
from passes.decompose.tucker import Tucker2
from passes.graph.layers import Geometry

__all__ = ["DECOMPOSITIONS", "why_no_rank"]

DECOMPOSITIONS: dict[str, Decomposition] = {d.name: d for d in (OutputSVD(), SpatialSVD(), Tucker2(), CP(), InputSVD())}


def why_no_rank(method: str, geometry: Geometry, rank: int) -> str | None:
    """Why a layer has no decomposition of this method and rank, in a clause that names both; None if it has one."""
    if method not in DECOMPOSITIONS:
        return f"unknown method '{method}', use {', '.join(DECOMPOSITIONS)}"
    reason = DECOMPOSITIONS[method].why_not(geometry)
    if reason is not None:
        return f"{method} does not apply: {reason}"
    most = DECOMPOSITIONS[method].max_rank(geometry)
    if isinstance(rank, bool) or not isinstance(rank, Integral) or not 1 <= rank <= most:
        return f"{method} has no rank {rank}: use a whole number from 1 to {most}"
    return None
