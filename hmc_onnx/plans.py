"""The plan: what is done to each group and layer, and why. Typed, versioned, JSON that a user may edit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calib.latency_table import Machine
from hmc_onnx.profiles import Profile
from hmc_onnx.settings import Settings, Strategy, Target
from passes.errors import PlanError
from passes.model import write_atomically

__all__ = ["GroupPlan", "LayerPlan", "Plan", "PlannedLatency", "read_plan", "read_profile", "write_json"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupPlan(_Frozen):
    """Classes to remove from a channel group (none: it stays whole; all: its residual branch goes)."""

    size: int
    removed: list[int]
    sensitivity: float = 0.0


class LayerPlan(_Frozen):
    """A decomposition for a layer ("keep": none), after its groups are pruned.

    Attributes:
        method: a name of `passes.decompose.DECOMPOSITIONS`, "keep", or "removed" with a residual branch.
        rank: of the decomposition, else 0.
        bears: what the layer bears best: its group in the sense of HMC.
        difference: D of `hmc_onnx.grouping`.
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


class PlannedLatency(_Frozen):
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


class Plan(_Frozen):
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


def write_json(value: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write a profile or plan as indented JSON, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, (value.model_dump_json(indent=1) + "\n").encode())


_T = TypeVar("_T", Profile, Plan)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    Raises:
        PlanError: it is missing or malformed.
    """
    return _read(path, Plan)


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile; raises as `read_plan`."""
    return _read(path, Profile)


def _read(path: str | os.PathLike[str], kind: type[_T]) -> _T:
    what = kind.__name__.lower()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise PlanError(f"cannot read the {what} '{path}': {getattr(e, 'strerror', None) or e}") from e
    try:
        return kind.model_validate_json(text)
    except ValidationError as e:
        problem = e.errors()[0]
        where = ".".join(str(p) for p in problem["loc"]) or "the file"
        raise PlanError(f"'{path}' is not a valid {what}: at {where}, {problem['msg'].lower()}") from e
