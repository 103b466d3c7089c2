"""The plan: what is done to each group and layer, and why. Typed, versioned, JSON that a user may edit."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from calib.measure.latency_table import Machine
from hmc_onnx.records.profile import Profile
from hmc_onnx.records.settings import Settings, Strategy, Target
from passes.core.errors import PlanError
from passes.core.records import Frozen, read_record, write_json

__all__ = ["GroupPlan", "LayerPlan", "Plan", "PlannedLatency", "read_plan", "read_profile", "write_json"]


class GroupPlan(Frozen):
    """Classes to remove from a channel group (none: it stays whole; all: its residual branch goes)."""

    size: int
    removed: list[int]
    sensitivity: float = 0.0


class LayerPlan(Frozen):
    """A decomposition for a layer ("keep": none), after its groups are pruned.

    Attributes:
        method: a name of `passes.decompose.DECOMPOSITIONS`, "keep", or "removed" with a residual branch.
        rank: of the decomposition, else 0.
        bears: what the layer bears best: its group in the sense of HMC.
        difference: D of `hmc_onnx.planning.hmc_groups`.
        reason: one sentence.
    """

    method: str
    rank: int = 0
    bears: str = "keep"
    difference: float | None = None
    sensitivity: float = 0.0
    macs: int = 0
    parameters: int = 0
    seconds: float | None = None
    reason: str = ""


class PlannedLatency(Frozen):
    """The time of a run of the planned network, as a share of the original's.

    Attributes:
        machine, batch: that it holds for.
        expected: the sum of the parts.
        measured: of a network of the planned shapes, before it is repaired; None where none was built.
        uncertainty: half-width of its 95 % interval.
        by_macs: layers that could not be timed alone.
    """

    machine: Machine
    batch: int
    expected: float
    measured: float | None = None
    uncertainty: float | None = None
    by_macs: list[str] = Field(default_factory=list)


class Plan(Frozen):
    """Everything that `apply` does, keyed by the model and data it was made from.

    `macs`, `parameters`, `latency` and `sensitivity` are what the solver expects of the whole network.
    """

    version: Literal[1] = 1
    model: str
    data: str
    settings: Settings
    strategy: Strategy
    target: Target
    groups: dict[str, GroupPlan]
    layers: dict[str, LayerPlan]
    declined: dict[str, str] = Field(default_factory=dict)
    macs: int
    parameters: int
    latency: PlannedLatency | None = None
    sensitivity: float


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    Raises:
        PlanError: it is missing or malformed.
    """
    return read_record(path, Plan, "plan", "a valid plan", PlanError)


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile; raises as `read_plan`."""
    return read_record(path, Profile, "profile", "a valid profile", PlanError)
