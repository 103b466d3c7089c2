"""The profile: what each candidate costs and how much the network bears it. Typed, versioned, JSON.

A candidate for a channel group is a number of classes to keep. A candidate for a layer is a decomposition and a
rank, given how many channels its input and output groups keep. Sensitivity is the KL divergence, in nats, of
the network's output from the original's with that candidate alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from calib.measure.latency_table import Machine
from hmc_onnx.records.declined import Reason
from hmc_onnx.records.settings import Settings
from passes.core.errors import PlanError
from passes.core.records import Explained, Frozen, read_record

__all__ = [
    "KEEP",
    "REMOVED",
    "GroupChoice",
    "GroupProfile",
    "LatencyProfile",
    "LayerChoice",
    "LayerProfile",
    "Profile",
    "Stage",
]

KEEP = "keep"
# Of a layer in a residual branch that is taken out of its sum.
REMOVED = "removed"
# What a choice loses: 0 or more, and finite.
Nats = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class GroupChoice(Frozen):
    """Keep `keep` classes by removing `removed`, the repaired consumers measured at `sensitivity` nats.

    With none kept the whole residual branch is removed; that is charged to the last group in it.
    """

    keep: int
    removed: list[int]
    sensitivity: Nats

    @property
    def removes_branch(self) -> bool:
        """Whether a residual branch is charged to it. It is charged to one of the groups in the branch."""
        return self.keep == 0 and self.sensitivity > 0


class GroupProfile(Frozen):
    """A channel group. Choice 0 keeps everything; `layers` are the producers and consumers by node name."""

    name: str
    size: int
    producers: list[str]
    consumers: list[str]
    choices: list[GroupChoice]


class Stage(Frozen):
    """Residual branches that add to one another's sums. Where several are removed, they lose more than each alone.

    Attributes:
        branches: names of the groups that their removals are charged to.
        correlation: ρ of the errors that any two of the removals leave, 0 to 1; a run gives all stages the same one.
            Removals that lose s nats alone lose (1 - ρ) Σ s + ρ (Σ √s)² together, the squared norm of a sum of such
            errors.
    """

    branches: list[str]
    correlation: float = Field(ge=0, le=1)


class LayerChoice(Frozen):
    """One decomposition of a layer, or "keep" or "removed", with `inputs` and `outputs` as choices of its groups.

    Attributes:
        inputs, outputs: index into the choices of the input and output group; 0 where there is no group.
        seconds: time of the layer's chain in a run of the serving batch; None where latency is not measured.
        error: share of the layer's response (squared) that the decomposition loses.
        sensitivity: nats; measured, or read off the layer's measured curve at `error`.
        rounding: nats that rounding to INT8 adds, in a network that is served in INT8.
        float_seconds: as `seconds`, with the layer in float32 in a network that is served in INT8, with the casts
            around it; None where it cannot be.
    """

    inputs: int
    outputs: int
    method: str
    rank: int
    macs: int
    parameters: int
    seconds: float | None = None
    error: float
    sensitivity: Nats
    measured: bool
    rounding: float = Field(default=0.0, exclude_if=lambda value: value == 0.0)
    float_seconds: float | None = Field(default=None, exclude_if=lambda value: value is None)


class LayerProfile(Frozen):
    """A layer with its candidates.

    Nodes that share a weight are one layer, named after the first of them; `also` names the others. Their MACs and
    seconds are added, and their parameters counted once.
    """

    name: str
    input_group: str | None
    output_group: str | None
    macs: int
    parameters: int
    seconds: float | None = None
    choices: list[LayerChoice]
    also: list[str] = Field(default_factory=list, exclude_if=lambda value: not value)


class LatencyProfile(Frozen):
    """What the latencies are of.

    Attributes:
        machine: that they hold for.
        batch: images a run.
        seconds: a run of the whole original model, and
        uncertainty: the half-width of its 95 % interval.
        unchanged: seconds of a run of the original in the precision that will be served; None where it is the same.
        table: digest of the latency table.
        by_macs: layers that could not be timed alone: their share of the time is taken by their MACs.
    """

    machine: Machine
    batch: int
    seconds: float
    uncertainty: float
    unchanged: float | None = Field(default=None, exclude_if=lambda value: value is None)
    table: str
    by_macs: list[str]


class Profile(Explained):
    """All that planning needs. `align`: ranks and numbers of channels on offer are multiples of this."""

    version: Literal[1] = 1
    model: str
    data: str
    settings: Settings
    align: int
    macs: int
    parameters: int
    latency: LatencyProfile | None = None
    groups: list[GroupProfile]
    stages: list[Stage] = Field(default_factory=list, exclude_if=lambda value: not value)
    layers: list[LayerProfile]
    declined: dict[str, Reason]

    @model_validator(mode="after")
    def _stages_are_of_its_groups(self) -> Profile:
        known = {group.name for group in self.groups}
        for stage in self.stages:
            for name in stage.branches:
                if name not in known:
                    raise ValueError(f"a stage has the group '{name}', which is none of the profile's")
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile that was saved.

        Raises:
            PlanError: the file is missing or malformed.
        """
        return read_record(path, cls, "profile", "a valid profile", PlanError)

    def explain(self) -> str:
        """How much each group and layer was found to bear: a line each, with the least and the most that it loses."""
        lines = [f"{self.macs:,} MACs, {self.parameters:,} parameters, multiples of {self.align} channels"]
        for group in self.groups:
            lines.append(
                f"channels of {group.name} ({group.size}): {_range([c.sensitivity for c in group.choices[1:]])}"
            )
        for stage in self.stages:
            lines.append(f"{len(stage.branches)} residual branches of a stage: correlation {stage.correlation:.2f}")
        for layer in self.layers:
            whole = [c.sensitivity for c in layer.choices if c.measured and c.rank]
            lines.append(f"{layer.name}: {len(layer.choices)} choices; decomposed {_range(whole)}")
        lines += [f"{name}: left alone, {reason}" for name, reason in self.declined.items()]
        return "\n".join(lines)


def _range(nats: Sequence[float]) -> str:
    return f"loses {min(nats):.1e} to {max(nats):.1e} nats" if nats else "is not offered"
