"""The plan: what is done to each group and layer, and why. Typed, versioned, JSON that a user may edit."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from calib.measure.latency_table import Machine
from hmc_onnx.records.declined import Reason
from hmc_onnx.records.goal import Strategy, Target
from hmc_onnx.records.profile import KEEP
from hmc_onnx.records.settings import Settings
from passes.core.errors import PlanError
from passes.core.records import Explained, Frozen, read_record

__all__ = ["OPTIMAL_GAP", "GroupPlan", "HeldBack", "LayerPlan", "Plan", "PlannedLatency"]

# The relative gap to the proven lower bound at which a plan counts as optimal.
OPTIMAL_GAP = 1e-4


class GroupPlan(Frozen):
    """Classes to remove from a channel group (none: it stays whole; all: its residual branch goes)."""

    size: int
    removed: list[int]
    sensitivity: float = 0.0

    @property
    def removes_branch(self) -> bool:
        """As `GroupChoice.removes_branch`."""
        return len(self.removed) == self.size and self.sensitivity > 0


class LayerPlan(Frozen):
    """A decomposition for a layer ("keep": none), after its groups are pruned.

    Attributes:
        method: a name of `passes.decompose.DECOMPOSITIONS`, "keep", or "removed" with a residual branch.
        rank: of the decomposition, else 0.
        bears: what the layer bears best: its group in the sense of HMC.
        difference: D of `hmc_onnx.planning.hmc_groups`.
        reason: one sentence.
        in_float: whether the layer stays in float32 in a network that is served in INT8.
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
    also: list[str] = Field(default_factory=list, exclude_if=lambda value: not value)
    in_float: bool = Field(default=False, exclude_if=lambda value: not value)


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


HeldBack = Literal["nothing", "report", "search"]


class Plan(Explained):
    """Everything that `apply` does, keyed by the model and data it was made from.

    `macs`, `parameters`, `latency` and `sensitivity` are what the solver expects of the whole network. `gap` is the
    relative distance between the loss that the solver came to and the least that it has proven possible; that loss is
    `sensitivity`, with at least a little for each change. `held_back` says for what a part of the images was held back
    from the calibration, if there were not enough for both.
    """

    version: Literal[1] = 1
    model: str
    data: str
    held_back: HeldBack = Field(default="nothing", exclude_if=lambda value: value == "nothing")
    settings: Settings
    strategy: Strategy
    target: Target
    groups: dict[str, GroupPlan]
    layers: dict[str, LayerPlan]
    declined: dict[str, Reason] = Field(default_factory=dict)
    macs: int
    parameters: int
    latency: PlannedLatency | None = None
    sensitivity: float
    gap: float = Field(default=0.0, ge=0, le=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that was saved, and perhaps edited.

        Raises:
            PlanError: the file is missing or malformed.
        """
        return read_record(path, cls, "plan", "a valid plan", PlanError)

    @property
    def proven(self) -> bool:
        """Whether no plan within the target is known to be possible that loses less, but for a negligible share."""
        return self.gap <= OPTIMAL_GAP

    @property
    def changes(self) -> bool:
        """Whether any channel is removed or any layer decomposed."""
        return any(group.removed for group in self.groups.values()) or any(
            layer.method != KEEP for layer in self.layers.values()
        )

    @property
    def removed_branches(self) -> int:
        """Number of residual branches that are removed."""
        return sum(group.removes_branch for group in self.groups.values())

    @property
    def in_float(self) -> list[str]:
        """Names of the nodes whose layers stay in float32 in a network that is served in INT8."""
        return [own for name, layer in self.layers.items() if layer.in_float for own in (name, *layer.also)]

    def explain(self) -> str:
        """What is done to each channel group and layer that is changed, and why: a line each."""
        lines = [f"strategy {self.strategy}, target {self.target}: {self.macs:,} MACs, {self.parameters:,} parameters"]
        if not self.proven:
            lines.append(f"not proven to be the best plan: another may lose {self.gap:.1%} less")
        for name, group in self.groups.items():
            if group.removed:
                left = group.size - len(group.removed)
                lines.append(f"channels of {name}: {left} of {group.size} are kept")
        for name, layer in self.layers.items():
            method = f"{layer.method} of rank {layer.rank}" if layer.rank else layer.method
            method += " in float32" if layer.in_float else ""
            together = ", ".join([name, *layer.also])
            lines.append(f"{together}: {method}: {layer.reason}")
        return "\n".join(lines)
