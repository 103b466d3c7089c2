"""A run: a model and calibration images, and what can be done with them, stage by stage.

Each stage's work is in a folder of its own; what they share is in `Context`. The command line, `hmc_onnx.compress` and
the benchmarks are a few lines on this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, CalibrationDataReader
from calib.runtime.batching import at_once, declared_batch, whole_batches
from calib.runtime.sessions import providers
from hmc_onnx.analysis.model_inputs import check_supported, fit, load_supported
from hmc_onnx.analysis.sanity import Finding, findings
from hmc_onnx.comparison.judging import Judged, check_decides, check_labels
from hmc_onnx.comparison.verification import BATCHES, Network, verify
from hmc_onnx.execution.context import Context, check_convertible
from hmc_onnx.planning.accuracy_search import Found, Search, Split, split
from hmc_onnx.planning.planner import Planner, timed_here
from hmc_onnx.planning.program import unchanged
from hmc_onnx.profiling.profiler import profile
from hmc_onnx.records.comparison import Verification
from hmc_onnx.records.goal import Goal, Strategy, Target
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import Profile
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import HERE, Work
from hmc_onnx.rewriting.applying import apply
from passes.core.errors import PlanError, SettingsError
from passes.graph.external import on_disk

__all__ = ["DataLike", "ModelLike", "Run", "opened"]

# Images whose answers are looked at before the work.
LOOKED_AT = 128

ModelLike = onnx.ModelProto | str | os.PathLike[str]
DataLike = CalibrationData | CalibrationDataReader | Iterable[Any]


@contextmanager
def opened(model: ModelLike) -> Iterator[onnx.ModelProto]:
    """A model of a kind that can be compressed; the weights of a large one are in a temporary file within the context.

    Args:
        model: an onnx.ModelProto, or the path of a file.

    Raises:
        ModelError: the file cannot be read, or the model is of a kind that cannot be compressed.
    """
    with on_disk(check_supported(model) if isinstance(model, onnx.ModelProto) else load_supported(model)) as proto:
        yield proto


class Run(Context):
    """A model on its way to a smaller and faster one.

    Args:
        served: the model as it is served, as `opened` gives it.
        data: images to calibrate with; anything that `hmc_onnx.compress` takes.
        settings: see `Settings`.
        work: see `Work`; with a work folder, a run that was cut off goes on.
        searching: whether a bound on the loss will be searched for: then a part of the images is kept for that.

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
        searching: bool = False,
    ) -> None:
        settings = settings or Settings()
        self._parts: Split | None = None
        if searching:
            self._parts = split(fit(served, data, 2 * settings.samples), settings.samples)
            check_decides(served, settings.judge)
            check_labels(served, self._parts.search, settings.runtime, settings.judge)
        fitted = self._parts.calibration if self._parts else fit(served, data, settings.samples)
        super().__init__(served, fitted, settings, work)
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
            self._profile = profile(self)
        return self._profile

    def findings(self) -> list[Finding]:
        """What is likely wrong with the images, their preprocessing or their labels; to be asked before the work.

        The model answers a few of the images for it.
        """
        judged = Judged(self.served, self.runtime, self.settings.judge)
        scores = None
        if judged.outputs[0].kind in ("scores", "probabilities"):
            fixed = declared_batch(self.served, self.data.feeds)
            size = fixed or at_once(self.data.feeds, LOOKED_AT)
            chunks = whole_batches(self.data.head(max(LOOKED_AT, size)), size, fixed)
            answers = [judged.run(feeds)[0] for feeds in chunks]
            if answers[0].ndim == 2 and len(answers[0]) == len(next(iter(chunks[0].values()))):
                scores = np.concatenate(answers)
        return findings(self.served, self.data, scores)

    @property
    def profiled(self) -> Profile | None:
        """The profile, where it has been asked for."""
        return self._profile

    def plan(self, target: Target | str, strategy: Strategy = "hmc") -> Plan:
        """The plan that loses least within a target.

        Raises:
            SettingsError: no combination of candidates meets the target.
        """
        wanted = Goal.of(target).target
        if wanted is None:
            raise SettingsError("a plan is for a target, such as macs=0.5: a bound on the loss has to be searched for")
        return unchanged(self) if wanted == Target() else self._planner(strategy).plan(wanted)

    def search(self, max_drop: float, strategy: Strategy = "hmc") -> Found:
        """The fastest network that loses no more than `max_drop` (0 to 1) on images that nothing was fitted to.

        Raises:
            SettingsError: there is none that is faster than the original.
        """
        if self._parts is None:
            raise SettingsError("images to search with were not kept: make the Run with searching=True")
        return Search(self, self._planner(strategy), self._parts, strategy).run(max_drop)

    def reach(self, goal: Goal) -> Found:
        """The network of a goal: that of its target, or the fastest within its bound on the loss.

        Raises:
            SettingsError: see `plan` and `search`.
        """
        if goal.target is None:
            assert goal.max_drop is not None
            return self.search(goal.max_drop, goal.strategy)
        plan = self.plan(goal.target, goal.strategy)
        return Found(self.apply(plan), plan, [])

    def apply(self, plan: Plan) -> onnx.ModelProto:
        """Carry a plan out, repair the layers, and check the result.

        Raises:
            PlanError: the plan is for another model or other data, or asks for what cannot be.
        """
        if self.data.digest() != plan.data:
            raise PlanError("the plan was made with other calibration data: give the same data and seed, or plan again")
        return apply(self, plan)

    def serve(self, compressed: onnx.ModelProto) -> onnx.ModelProto:
        """A compressed model in the precision of the settings; in float32 it is the model itself.

        Raises:
            ModelError: the model cannot be quantised.
        """
        return self.served_form(compressed)

    def verify(self, compressed: onnx.ModelProto, images: DataLike | None = None) -> Verification:
        """Compare a compressed model with the original.

        Args:
            compressed: the model.
            images: to compare on; default: the calibration images.

        Raises:
            ModelError: the signatures differ, or a model does not run.
            DataError: the images do not fit.
        """
        compared = self.data if images is None else fit(self.served, images)
        timed = timed_here(self._profile) if self._profile else None
        batches = tuple(sorted({*BATCHES, *([timed.batch] if timed else [])}))
        known = {timed.batch: timed.seconds} if timed else {}
        precision = self.settings.precision
        alone = None if precision == "fp32" else (precision, self.serve(self.normal.finished()))
        pair = Network(self.served, self.normal, self.settings.judge, alone), Network(compressed)
        return verify(*pair, compared, self.runtime, batches, known)

    def _planner(self, strategy: Strategy) -> Planner:
        if strategy not in self._planners:
            self._planners[strategy] = Planner(self, self.profile(), strategy)
        return self._planners[strategy]
