"""The report of a run: the comparison, what was done to each layer and what that was decided on. Typed, JSON."""

from __future__ import annotations

import os

from pydantic import Field

from hmc_onnx.records.comparison import Verification
from hmc_onnx.records.plan import Plan
from passes.core.errors import PlanError
from passes.core.records import Frozen, read_record

__all__ = [
    "PRUNING",
    "CurvePoint",
    "LayerReport",
    "LeftAlone",
    "RunProvenance",
    "RunReport",
    "SensitivityCurve",
    "TrainingEpoch",
]

# The kinds of pruning curves: of the channels that a layer reads, and of those that it writes.
PRUNING = ("pruned inputs", "pruned outputs")


class CurvePoint(Frozen):
    """A candidate: how much it keeps, and how much the network's output changes with this candidate alone.

    Attributes:
        share: share of the layer's MACs that are kept; for pruning, share of the channels.
        size: rank of the decomposition; for pruning, number of channels kept.
        sensitivity: KL divergence, in nats.
        chosen: whether the plan takes it.
    """

    share: float
    size: int
    sensitivity: float
    chosen: bool = False


class SensitivityCurve(Frozen):
    """The candidates of one kind, by their share.

    Attributes:
        kind: one of `PRUNING`, or a name of `passes.decompose.DECOMPOSITIONS`.
        group: for pruning, the channel group, named after the first layer that writes it; else empty.
        points: from the smallest share to the largest.
    """

    kind: str
    group: str = ""
    points: list[CurvePoint]


class LayerReport(Frozen):
    """One layer before and after, with what the decision was made on.

    Attributes:
        name: of the node.
        macs: before and after, of one image.
        parameters: before and after.
        milliseconds: before and after, of a run at the batch that is served; None where they were not measured.
        inputs: channels that it reads, before and after; None where they are in no group that can be pruned.
        outputs: channels that it writes, as `inputs`.
        method: as in `LayerPlan`.
        rank: of the decomposition, else 0.
        in_float: as in `LayerPlan`.
        bears: the kind of compression by which the network loses least: "prune", "lowrank", "both" or "keep".
        difference: preference from -1 (pruning) to +1 (low rank); None where nothing is on offer.
        pruning: sensitivity to pruning, in nats: mean over a few shares of the MACs; None where it is not on offer.
        lowrank: sensitivity to decomposition, as `pruning`.
        reason: one sentence.
        curves: measured sensitivities; empty where no profile was made.
    """

    name: str
    macs: tuple[int, int]
    parameters: tuple[int, int]
    milliseconds: tuple[float, float] | None = None
    inputs: tuple[int, int] | None = None
    outputs: tuple[int, int] | None = None
    method: str
    rank: int = 0
    in_float: bool = Field(default=False, exclude_if=lambda value: not value)
    bears: str
    difference: float | None = None
    pruning: float | None = None
    lowrank: float | None = None
    reason: str
    curves: list[SensitivityCurve] = Field(default_factory=list)

    @property
    def pruned(self) -> bool:
        """Whether it lost channels, and is not removed altogether."""
        return not self.removed and any(pair is not None and pair[1] < pair[0] for pair in (self.inputs, self.outputs))

    @property
    def removed(self) -> bool:
        """Whether it went with its residual branch."""
        return self.method == "removed"

    @property
    def decomposed(self) -> bool:
        """Whether it is now a chain of smaller layers."""
        return self.rank > 0


class LeftAlone(Frozen):
    """What was not compressed.

    Attributes:
        reason: why, in the words of the analysis.
        advice: what the owner of the model can do about it, if anything.
        names: layers, or "channels of" a layer, that this reason holds for.
    """

    reason: str
    advice: str
    names: list[str]


class TrainingEpoch(Frozen):
    """An epoch of fine-tuning: see `hmc_onnx.finetune.options.Epoch`. `loss` is None of epoch 0, before training."""

    epoch: int
    loss: float | None
    held: float
    top1: float
    seconds: float


class RunProvenance(Frozen):
    """How the result can be made again.

    Attributes:
        command: the command line, quoted for a POSIX shell; empty for a run from Python.
        original, compressed: file names of the models; empty where they are not known.
        machine: processor, provider and threads that times were measured with.
        versions: of the packages and of Python, by name.
    """

    command: str = ""
    original: str = ""
    compressed: str = ""
    machine: str
    versions: dict[str, str]


class RunReport(Verification):
    """All that the page shows. The fields of `Verification` come first, as in reports of earlier versions.

    Attributes:
        plan: what was done; None where two models were compared and no more is known.
        layers: in the order of the network.
        left_alone: by reason.
        epochs: of fine-tuning, if there was any.
        provenance: how to repeat the run; None in reports of earlier versions.
    """

    plan: Plan | None = None
    layers: list[LayerReport] = Field(default_factory=list)
    left_alone: list[LeftAlone] = Field(default_factory=list)
    epochs: list[TrainingEpoch] = Field(default_factory=list)
    provenance: RunProvenance | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunReport:
        """Read a report that `--report` wrote, of this or an earlier version.

        Raises:
            PlanError: the file is missing or malformed.
        """
        return read_record(path, cls, "report", "a report of a run (what `--report RUN.json` writes)", PlanError)
