"""A run: a model and calibration images, and what can be done with them, stage by stage.

Each stage's work is in a folder of its own; what they share is in `Context`. The command line, `hmc_onnx.compress` and
the benchmarks are a few lines on this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import onnx

from calib.data.calibration import CalibrationData, CalibrationDataReader
from calib.runtime.batching import declared_batch
from calib.runtime.quantisation import OLDEST_OPSET
from calib.runtime.sessions import providers
from hmc_onnx.analysis.held_back import hold_back, images_to_ask_for
from hmc_onnx.analysis.model_inputs import check_supported, fit, load_supported
from hmc_onnx.analysis.sanity import Finding, values_apart
from hmc_onnx.comparison.data_check import look_at, warn_of
from hmc_onnx.comparison.judging import check_decides, check_labels
from hmc_onnx.comparison.verification import BATCHES, Network, Serving, verify
from hmc_onnx.execution.context import Context, check_convertible
from hmc_onnx.planning.accuracy_search import Found, Search
from hmc_onnx.planning.nearest import nearest
from hmc_onnx.planning.planner import Planner, timed_here
from hmc_onnx.planning.program import Program, unreachable
from hmc_onnx.planning.repaired_branches import with_repaired_branches
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.profiling.candidate_times import Clock, default_align
from hmc_onnx.profiling.least_time import least_latency
from hmc_onnx.profiling.possible_profile import possible_profile
from hmc_onnx.profiling.profiler import profile
from hmc_onnx.records.comparison import Verification
from hmc_onnx.records.goal import Goal, Strategy, Target
from hmc_onnx.records.plan import HeldBack, Plan
from hmc_onnx.records.profile import Profile
from hmc_onnx.records.provenance import Provenance, with_provenance
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import HERE, Work
from hmc_onnx.rewriting.applying import apply
from hmc_onnx.rewriting.planned_shapes import layer_seconds
from passes.core.arguments import check_one_of, check_type
from passes.core.errors import ModelError, PlanError, SettingsError
from passes.graph.external import on_disk
from passes.graph.files import load
from passes.graph.model import digest
from passes.graph.protos import opset_of

__all__ = ["DataLike", "ModelLike", "Run", "opened", "purpose_of"]

# With fewer images, what is fitted to them is worse on new images (`benchmarks/few_images.py`).
FEW_IMAGES = 128

# Factor by which the least time must exceed a target to be out of reach for sure, as it is only about the least.
CLEARLY = 1.15

# The settings on which it depends what a plan becomes.
REPAIRED_BY = ("keep", "only", "positions", "seed", "precision")

ModelLike = onnx.ModelProto | str | os.PathLike[str]
DataLike = CalibrationData | CalibrationDataReader | Iterable[Any]


@contextmanager
def opened(model: ModelLike, served: bool = False) -> Iterator[onnx.ModelProto]:
    """A model of a kind that can be compressed; the weights of a large one are in a temporary file within the context.

    Args:
        model: an onnx.ModelProto, or the path of a file.
        served: whether it is only run, and so may be of another kind: quantised, for one.

    Raises:
        ModelError: the file cannot be read, or the model is of a kind that cannot be compressed.
    """
    check_type(model, (onnx.ModelProto, str, os.PathLike), "the model", "give an onnx.ModelProto or a path", ModelError)
    if isinstance(model, onnx.ModelProto):
        proto = model if served else check_supported(model)
    else:
        proto = load(model) if served else load_supported(model)
    with on_disk(proto) as kept:
        yield kept


def purpose_of(goal: Goal, test_images: bool) -> HeldBack:
    """What images are held back for on the way to a goal: a search, or the report where no others are there for it."""
    if goal.max_drop is not None:
        return "search"
    return "nothing" if test_images else "report"


def _few(count: int) -> Finding:
    said = "is 1 image" if count == 1 else f"are {count} images"
    return Finding(
        code="few_images",
        sentence=f"there {said} to calibrate with: what is fitted to fewer than {FEW_IMAGES} loses more on new images, "
        "so give more",
    )


class Run(Context):
    """A model on its way to a smaller and faster one.

    Args:
        served: the model as it is served, as `opened` gives it.
        data: images to calibrate with; anything that `hmc_onnx.compress` takes.
        settings: see `Settings`.
        work: see `Work`; with a work folder, a run that was cut off goes on.
        purpose: for what a part of the images is held back from all fitting: "report", so that `verify` compares on
            new images, "search" for a bound on the loss, or "nothing".

    Attributes:
        held: the images that are held back; None where there are too few images for that.

    Raises:
        DataError: the images do not fit the model, or are too few.
        SettingsError: the provider does not work here.
    """

    def __init__(
        self,
        served: onnx.ModelProto,
        data: DataLike,
        settings: Settings | None = None,
        work: Work = HERE,
        purpose: HeldBack = "nothing",
    ) -> None:
        settings = settings or Settings()
        check_type(settings, Settings, "`settings`", "give hmc_onnx.Settings(...)")
        check_type(served, onnx.ModelProto, "the model", "read it with hmc_onnx.load(path)", ModelError)
        check_type(work, Work, "`work`", "give hmc_onnx.Work(...)")
        check_one_of(purpose, HeldBack, "purpose")
        everything = fit(served, data, images_to_ask_for(settings.samples, purpose))
        if purpose == "search":
            check_decides(served, settings.judge)
        parts = hold_back(everything, settings.samples, settings.seed, purpose)
        super().__init__(served, parts.calibration, settings, work)
        self.held, self._purpose = parts.held, purpose
        self._fewer: HeldBack = purpose if parts.fewer else "nothing"
        if self.held is not None:
            check_labels(served, self.held, settings.runtime, settings.judge)
        check_convertible(served, settings.precision)
        self._profile: Profile | None = None
        self._planners: dict[Strategy, Planner] = {}
        providers(settings.provider, settings.provider_option)

    def profile(self) -> Profile:
        """What each candidate costs, and how much accuracy it loses; measured when it is first asked for.

        Raises:
            ModelError: the model has no layer that could be compressed.
        """
        if self._profile is None:
            self._profile = with_repaired_branches(self, profile(self, self.clock))
        return self._profile

    @cached_property
    def clock(self) -> Clock | None:
        """The times of the model and its candidates, where the settings want them measured."""
        return Clock(self) if self.settings.latency else None

    def findings(self) -> list[Finding]:
        """What is likely wrong with the images, their preprocessing or their labels; to be asked before the work.

        The model answers a few of the images for it.
        """
        found = look_at(self.served, self.data, self.runtime, self.settings.judge)
        if len(self.data) < FEW_IMAGES:
            found.append(_few(len(self.data)))
        if self.held is not None and (apart := values_apart(self.held)) is not None:
            found.append(apart)
        opset = opset_of(self.served)
        if self.settings.precision == "int8" and opset is not None and opset < OLDEST_OPSET:
            sentence = f"the model is of opset {opset}, and INT8 needs {OLDEST_OPSET}: the file will be of that"
            found.append(Finding(code="opset_raised", sentence=sentence))
        return found

    def check_data(self, goal: Goal) -> None:
        """Warn of each of the `findings` (`HmcWarning`).

        Raises:
            DataError: a result would mean nothing: a finding is fatal, or the accuracy before is near chance and a loss
                of it is to be bounded.
        """
        warn_of(self.findings(), ["near_chance"] if goal.max_drop is not None else [])

    @property
    def profiled(self) -> Profile | None:
        """The profile, where it has been asked for."""
        return self._profile

    def plan(self, target: Target | str, strategy: Strategy = "hmc") -> Plan:
        """The plan that loses least within a target.

        Raises:
            SettingsError: no combination of candidates meets the target.
        """
        check_one_of(strategy, Strategy, "strategy")
        wanted = Goal.of(target).target
        if wanted is None:
            raise SettingsError("a plan is for a target, such as macs=0.5: a bound on the loss has to be searched for")
        plan = unchanged(self) if wanted == Target() else self._planned(wanted, strategy)
        return plan.model_copy(update={"held_back": self._fewer})

    def _planned(self, target: Target, strategy: Strategy) -> Plan:
        if self._profile is None and self.clock is not None and target.latency is not None:
            least = least_latency(self, self.clock)
            if least > CLEARLY * target.latency:  # which profiling for many minutes would not change
                align, selection = self.settings.align or 1, self.settings.selection
                raise unreachable(target, strategy, Target(latency=min(least, 1.0)), align, selection)
        if self._profile is None and self.clock is None and self.compressible.layers:
            known = "hmc" if strategy == "nahc" else strategy  # what NaHC allows follows from what is measured
            possible = possible_profile(self, self.settings.align or default_align(self.runtime))
            Program(possible, known).check_within_reach(target)
        return self._planner(strategy).plan(target)

    def search(self, max_drop: float, strategy: Strategy = "hmc") -> Found:
        """The fastest network that loses no more than `max_drop` (0 to 1) on images that nothing was fitted to.

        Raises:
            SettingsError: there is none that is faster than the original.
        """
        check_one_of(strategy, Strategy, "strategy")
        if self._purpose != "search" or self.held is None:
            raise SettingsError("no images to search with were held back: make the Run with purpose='search'")
        found = Search(self, self._planner(strategy), self.held, strategy).run(max_drop)
        return replace(found, plan=found.plan.model_copy(update={"held_back": self._fewer}))

    def reach(self, goal: Goal) -> Found:
        """The network of a goal: that of its target, or the fastest within its bound on the loss.

        Raises:
            SettingsError: see `plan` and `search`.
        """
        if goal.target is None:
            assert goal.max_drop is not None
            return self.search(goal.max_drop, goal.strategy)
        plan = (
            nearest(goal.target, partial(self.plan, strategy=goal.strategy))
            if goal.or_nearest
            else self.plan(goal.target, goal.strategy)
        )
        return Found(self.apply(plan), plan)

    def apply(self, plan: Plan) -> onnx.ModelProto:
        """Carry a plan out, repair the layers, and check the result.

        Raises:
            PlanError: the plan is for another model or other data, or asks for what cannot be.
        """
        check_type(plan, Plan, "the plan", "give hmc_onnx.Plan.load(path)", PlanError)
        if self.data.digest() != plan.data:
            raise PlanError(
                "the plan was made with other calibration data: give the same images, with labels if they had some "
                "then, and the same seed, or plan again"
            )
        for field in REPAIRED_BY:
            planned, own = getattr(plan.settings, field), getattr(self.settings, field)
            if planned != own:
                raise PlanError(
                    f"the plan was made with `{field}={planned}`, and the run has `{field}={own}`: make the run with "
                    "the plan's settings, or plan again"
                )
        return apply(self, plan)

    def recorded(self, compressed: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
        """A copy of a compressed model, in float32, whose metadata say what was done to it and by which plan."""
        batch = declared_batch(self.served, self.data.feeds)
        return with_provenance(compressed, Provenance.of_plan(plan, digest(self.served), batch))

    def serve(self, compressed: onnx.ModelProto, plan: Plan | None = None) -> onnx.ModelProto:
        """A compressed model in the precision of the settings; in float32 it is the model itself.

        Args:
            compressed: the model, in float.
            plan: by which it was made, which may leave layers in float32.

        Raises:
            ModelError: the model cannot be quantised.
        """
        in_float = [] if plan is None else plan.in_float
        served, recorded = self.served_form(compressed, in_float=in_float), Provenance.read(compressed)
        if recorded is None or recorded.precision == self.settings.precision:
            return served
        return with_provenance(served, recorded.model_copy(update={"precision": self.settings.precision}))

    def verify(self, compressed: onnx.ModelProto, images: DataLike | None = None) -> Verification:
        """Compare a compressed model with the original.

        Args:
            compressed: the model.
            images: to compare on, which nothing was fitted to; default: those that were held back, and where none
                were, the calibration images.

        Raises:
            ModelError: the signatures differ, or a model does not run.
            DataError: the images do not fit.
        """
        check_type(compressed, onnx.ModelProto, "the model", "read it with hmc_onnx.load(path)", ModelError)
        new = self.held if images is None else fit(self.served, images)
        compared = self.data if new is None else new
        timed = timed_here(self._profile) if self._profile else None
        serving = Serving(self.serving_batch, timed.seconds if timed else None)
        batches = tuple(sorted({*BATCHES, *([timed.batch] if timed else [])}))
        found = verify(Network.of(self), Network(compressed), compared, self.runtime, batches, serving)
        return found.model_copy(update={"new_images": new is not None, "held_back": new is not None and images is None})

    def layer_seconds(self, plan: Plan) -> dict[str, tuple[float, float]]:
        """The seconds of each layer before and after, timed alone, for a plan that was made without times.

        A layer is missing that onnxruntime cannot run alone.
        """
        return layer_seconds(self, plan)

    def _planner(self, strategy: Strategy) -> Planner:
        if strategy not in self._planners:
            self._planners[strategy] = Planner(self, self.profile(), strategy)
        return self._planners[strategy]
