"""The public names of hmc_onnx: the main job in one call, its steps one by one, and what they take and give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from calib.data.calibration import CalibrationData, CalibrationDataReader, Origin, from_reader
from calib.data.preprocess import Preprocess
from calib.measure.latency_table import LatencyTable, Machine, ProbeTime, read_table
from calib.runtime.sessions import CPU, Runtime
from hmc_onnx.analysis.model_inputs import fit, load_data, preprocessing
from hmc_onnx.analysis.sanity import Finding
from hmc_onnx.comparison.judging import check_labels
from hmc_onnx.comparison.verification import Network
from hmc_onnx.comparison.verification import verify as compare
from hmc_onnx.execution.context import Context, check_convertible
from hmc_onnx.finetune.options import Epoch, FineTuning
from hmc_onnx.finetune.result import FineTuned
from hmc_onnx.handoff.handed_over import HandedOver
from hmc_onnx.handoff.handed_over import read as handed_over
from hmc_onnx.planning.accuracy_search import Found
from hmc_onnx.planning.program import solve
from hmc_onnx.records.changes import ChangedImage, Changes, ClassAccuracy
from hmc_onnx.records.comparison import (
    BatchComparison,
    Interval,
    Intervals,
    OutputComparison,
    Side,
    Timing,
    Unchanged,
    Verification,
    Visited,
)
from hmc_onnx.records.goal import Goal, Strategy, Target, parse_target
from hmc_onnx.records.handoff import Handoff, ServingTarget
from hmc_onnx.records.images import Images
from hmc_onnx.records.plan import GroupPlan, LayerPlan, Plan, PlannedLatency
from hmc_onnx.records.profile import (
    GroupChoice,
    GroupProfile,
    LatencyProfile,
    LayerChoice,
    LayerProfile,
    Profile,
    Stage,
)
from hmc_onnx.records.provenance import Provenance, with_provenance
from hmc_onnx.records.settings import QUICK, Precision, Settings
from hmc_onnx.records.work import HERE, Work
from hmc_onnx.reporting.report_file import write_report_file
from hmc_onnx.reporting.run_report import provenance, run_report
from hmc_onnx.reporting.summary import as_html, as_text
from hmc_onnx.reporting.tables import comparison
from hmc_onnx.run import DataLike, ModelLike, Run, opened, purpose_of
from passes.core.arguments import check_type
from passes.core.declined import Declined, Why
from passes.core.errors import DataError, HmcError, ModelError, OutputError, PlanError, SettingsError
from passes.core.progress import Progress
from passes.graph.external import brought_in
from passes.graph.files import load, save

if TYPE_CHECKING:
    from hmc_onnx.finetune import finetune as finetune
    from hmc_onnx.handoff import handoff as handoff
else:  # the packages of these names, which can be called
    import hmc_onnx.finetune as finetune
    import hmc_onnx.handoff as handoff

__all__ = [
    "CPU",
    "HERE",
    "QUICK",
    "BatchComparison",
    "CalibrationData",
    "CalibrationDataReader",
    "ChangedImage",
    "Changes",
    "ClassAccuracy",
    "DataError",
    "DataLike",
    "Declined",
    "Epoch",
    "Finding",
    "FineTuned",
    "FineTuning",
    "Found",
    "Goal",
    "GroupChoice",
    "GroupPlan",
    "GroupProfile",
    "HandedOver",
    "Handoff",
    "HmcError",
    "Images",
    "Interval",
    "Intervals",
    "LatencyProfile",
    "LatencyTable",
    "LayerChoice",
    "LayerPlan",
    "LayerProfile",
    "Machine",
    "ModelError",
    "ModelLike",
    "Origin",
    "OutputComparison",
    "OutputError",
    "Plan",
    "PlanError",
    "PlannedLatency",
    "Preprocess",
    "ProbeTime",
    "Profile",
    "Progress",
    "Provenance",
    "Result",
    "Run",
    "Runtime",
    "ServingTarget",
    "Settings",
    "SettingsError",
    "Side",
    "Stage",
    "Strategy",
    "Target",
    "Timing",
    "Unchanged",
    "Verification",
    "Visited",
    "Why",
    "Work",
    "apply",
    "compress",
    "finetune",
    "from_reader",
    "handed_over",
    "handoff",
    "load",
    "load_data",
    "opened",
    "parse_target",
    "preprocessing",
    "profile",
    "read_table",
    "save",
    "solve",
    "verify",
]


@dataclass(frozen=True, repr=False)
class Result:
    """A compressed model, what was done to it, what that was decided on, and how it compares.

    `profile` is None where nothing had to be measured, as for the target "none".
    """

    model: onnx.ModelProto
    plan: Plan
    profile: Profile | None
    report: Verification

    def save(self, path: str | os.PathLike[str], metadata: bool = True) -> None:
        """Write the model atomically; raises OutputError.

        Args:
            path: of the file.
            metadata: whether the file says how it was made (`Provenance`).
        """
        save(self.model if metadata else with_provenance(self.model, None), path)

    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write the report of the run atomically: a page where the name ends in .html, else JSON.

        Raises:
            OutputError: it cannot be written.
        """
        made_by = provenance(runtime=self.plan.settings.runtime)
        write_report_file(run_report(self.report, self.plan, self.profile, made_by=made_by), path)

    def __str__(self) -> str:
        return as_text(comparison(self.report))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(comparison(self.report))


def compress(
    model: ModelLike,
    calibration: DataLike,
    goal: Goal | Target | str,
    *,
    settings: Settings | None = None,
    test: DataLike | None = None,
    work: Work = HERE,
) -> Result:
    """Compress a model to a share of its time, MACs or parameters, or as far as a loss allows, without training.

    Args:
        model: an onnx.ModelProto or a path.
        calibration: images: anything that follows onnxruntime's CalibrationDataReader protocol, an iterable of batches
            such as torch's DataLoader, or `CalibrationData`. Images beyond `settings.samples`, and a fifth where there
            are few more, are held back from all fitting, to search for a bound on the loss or to compare on.
        goal: "latency=0.6", "macs=0.5", "params=0.5" or several of them with commas between; "none" to change the
            precision alone; "max_drop=0.01" for the fastest network that loses no more; or a `Goal`, which also names
            a strategy.
        settings: see `Settings`.
        test: images to compare the models on, which are none to calibrate with; default: those that are held back.
        work: where the work is done; with a folder, a run that was cut off goes on.

    Raises:
        ModelError, DataError, SettingsError: see their docstrings.
    """
    goal, settings = Goal.of(goal), settings or Settings()
    check_type(settings, Settings, "`settings`", "give hmc_onnx.Settings(...)")
    if goal.by_latency:
        settings = settings.model_copy(update={"latency": True})
    with opened(model) as proto:
        purpose = purpose_of(goal, test is not None)
        run = Run(proto, calibration, settings, work, purpose)
        images = None if test is None else fit(proto, test)
        check_labels(proto, images or run.data, settings.runtime, settings.judge)
        run.check_data(goal)
        found = run.reach(goal)
        served = run.serve(run.recorded(found.model, found.plan), found.plan)
        report = found.noted_in(run.verify(served, images))
        return Result(brought_in(served), found.plan, run.profiled, report)


def profile(model: ModelLike, calibration: DataLike, settings: Settings | None = None, work: Work = HERE) -> Profile:
    """Measure what each candidate costs and how much accuracy it loses.

    Args:
        model: an onnx.ModelProto or a path.
        calibration: images, as for `compress`.
        settings: see `Settings`.
        work: where the work is done; with a folder, a run that was cut off goes on.

    Raises:
        ModelError, DataError, SettingsError: see their docstrings.
    """
    with opened(model) as proto:
        return Run(proto, calibration, settings, work).profile()


def apply(
    model: ModelLike, plan: Plan, calibration: DataLike, work: Work = HERE, metadata: bool = True
) -> onnx.ModelProto:
    """Carry a plan out, in the precision that it was made for, and check the result.

    Args:
        model: an onnx.ModelProto or a path.
        plan: made for it.
        calibration: the images that it was made with.
        work: its `memory` bounds what is held of the activations.
        metadata: whether the model says how it was made (`Provenance`).

    Raises:
        PlanError: the plan is for another model or other data, or asks for what cannot be.
    """
    check_type(plan, Plan, "the plan", "give hmc_onnx.Plan.load(path)", PlanError)  # before its settings are read
    with opened(model) as proto:
        run = Run(proto, calibration, plan.settings, work, plan.held_back)
        compressed = run.serve(run.recorded(run.apply(plan), plan), plan)
        return brought_in(compressed if metadata else with_provenance(compressed, None))


def verify(
    a: ModelLike,
    b: ModelLike,
    images: CalibrationData,
    runtime: Runtime = CPU,
    outputs: Sequence[str] = (),
    precision: Precision = "fp32",
) -> Verification:
    """Compare model b with model a: cost, fidelity, accuracy, and latency side by side.

    Args:
        a: the original: a model or a path.
        b: the compressed one; it must have a's signature.
        images: with or without labels.
        runtime: how to run them.
        outputs: what outputs are, where they would be taken for something else, such as "features=embedding".
        precision: that b is served in. Where it is another than "fp32", what a quantiser alone makes of a is measured,
            too, with ranges that are found on these images by minmax.

    Raises:
        ModelError: the signatures differ, or a model does not run.
        DataError: the images do not fit.
    """
    check_type(runtime, Runtime, "`runtime`", "give hmc_onnx.Runtime('cpu')")
    settings = Settings(judge=tuple(outputs), precision=precision).run_by(runtime)
    with opened(a, served=True) as first, opened(b, served=True) as second:
        check_convertible(first, precision)
        images = fit(first, images)
        original = Network.of(Context(first, images, settings))
        return compare(original, Network(second), images, runtime)
