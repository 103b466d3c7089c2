"""The main job: profile, plan, apply, verify."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from calib.data.calibration import CalibrationData, CalibrationDataReader
from calib.measure.latency_table import LatencyTable
from calib.runtime.batching import input_shapes
from calib.runtime.observing import observe
from calib.runtime.sessions import providers
from hmc_onnx.analysis.model_inputs import check_supported, fit, load_supported
from hmc_onnx.comparison.verification import BATCHES, Verification, Visited, check_labels, same_signature, verify
from hmc_onnx.execution.checkpoint import Journal
from hmc_onnx.execution.executor import HERE, Work
from hmc_onnx.planning.accuracy_search import search, split
from hmc_onnx.planning.latency_refinement import MOST_PLANS, fitted, timed_here
from hmc_onnx.profiling.profiler import identity
from hmc_onnx.profiling.profiler import profile as profile_model
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import Profile
from hmc_onnx.records.settings import Settings, Strategy, Target, parse_target
from hmc_onnx.rewriting.applying import apply as apply_plan
from passes.core.errors import OutputError, PlanError, SettingsError
from passes.core.progress import Progress, silent
from passes.graph.external import brought_in, on_disk
from passes.graph.files import save, weights_beside, weights_of
from passes.graph.model import Model
from passes.normal_form.normalise import normalise

__all__ = ["Result", "apply", "check_output", "compress", "profile"]

ModelLike = onnx.ModelProto | str | os.PathLike[str]
DataLike = CalibrationData | CalibrationDataReader | Iterable[Any]


@dataclass(frozen=True)
class Result:
    """A compressed model, what was done to it, what that was decided on, and how it compares."""

    model: onnx.ModelProto
    plan: Plan
    profile: Profile = field(repr=False)
    report: Verification

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically; raises OutputError."""
        save(self.model, path)


def _proto(model: ModelLike) -> onnx.ModelProto:
    return check_supported(model) if isinstance(model, onnx.ModelProto) else load_supported(model)


def _normalised(proto: onnx.ModelProto, data: CalibrationData, settings: Settings) -> Model:
    return observe(normalise(proto), input_shapes(proto, data), settings.runtime)


def profile(
    model: ModelLike,
    calibration: DataLike,
    settings: Settings | None = None,
    progress: Progress = silent,
    table: LatencyTable | None = None,
    work: Work = HERE,
) -> Profile:
    """Measure what each candidate costs and how much the network bears it.

    Args:
        model: an onnx.ModelProto or a path.
        calibration: images; anything that follows onnxruntime's CalibrationDataReader protocol, or CalibrationData.
        settings: see `Settings`.
        progress: called as the work goes on.
        table: latencies of another machine, to plan for it.
        work: where the work is done; with a folder, a run that was cut off goes on.

    Raises:
        ModelError, DataError, SettingsError: see their docstrings.
    """
    settings = settings or Settings()
    providers(settings.provider)
    with on_disk(_proto(model)) as proto:
        data = fit(proto, calibration, settings.samples)
        return profile_model(_normalised(proto, data, settings), data, settings, progress, proto, table, work)


def apply(
    model: ModelLike, plan: Plan, calibration: DataLike, progress: Progress = silent, work: Work = HERE
) -> onnx.ModelProto:
    """Carry a plan out and check the result.

    Args:
        model: an onnx.ModelProto or a path.
        plan: made for it.
        calibration: the images that it was made with.
        progress: called as the work goes on.
        work: its `memory` bounds what is held of the activations.

    Raises:
        PlanError: the plan is for another model or other data, or asks for what cannot be.
    """
    with on_disk(_proto(model)) as proto:
        data = fit(proto, calibration, plan.settings.samples)
        if data.digest() != plan.data:
            raise PlanError("the plan was made with other calibration data: give the same data and seed, or plan again")
        return brought_in(_applied(proto, _normalised(proto, data, plan.settings), plan, data, progress, work))


def _applied(
    proto: onnx.ModelProto, model: Model, plan: Plan, data: CalibrationData, progress: Progress, work: Work
) -> onnx.ModelProto:
    compressed = apply_plan(model, plan, data, progress, int(work.memory * 1e9)).finished()
    same_signature(proto, compressed)
    return compressed


def compress(
    model: ModelLike,
    calibration: DataLike,
    target: Target | str | None = None,
    *,
    max_drop: float | None = None,
    strategy: Strategy = "hmc",
    settings: Settings | None = None,
    test: DataLike | None = None,
    progress: Progress = silent,
    table: LatencyTable | None = None,
    work: Work = HERE,
) -> Result:
    """Compress a model to a share of its time, MACs or parameters, or as far as a loss allows, without training.

    Args:
        model: an onnx.ModelProto or a path.
        calibration: images as in `profile`; for `max_drop`, more than `settings.samples` of them.
        target: a `Target`, or "latency=0.6", "macs=0.5", "params=0.5", or several of them.
        max_drop: in place of a target: the fastest network that loses no more top-1 (without labels: that chooses
            another class on no larger share of the images), from 0 to 1, on images that nothing was fitted to.
        strategy: "hmc", or one of the methods alone: "nahc", "ahc", "prune", "lowrank".
        settings: see `Settings`.
        test: images to compare the models on; the calibration images if not given.
        progress: called as the work goes on.
        table: latencies of another machine, to plan for it.
        work: where the work is done; with a folder, a run that was cut off goes on.

    Raises:
        ModelError, DataError, SettingsError: see their docstrings.
    """
    if (target is None) == (max_drop is None):
        raise SettingsError("give either a target, such as latency=0.6, or a bound on the loss (max_drop), not both")
    if max_drop is not None and not 0 <= max_drop < 1:
        raise SettingsError(f"max_drop {max_drop:g} is out of range: it is a share of the images, such as 0.01")
    target = parse_target(target) if isinstance(target, str) else target
    settings = settings or Settings()
    if target is None or target.latency is not None:
        settings = settings.model_copy(update={"latency": True})
    with on_disk(_proto(model)) as proto:
        parts = None
        if max_drop is None:
            data = fit(proto, calibration, settings.samples)
        else:
            parts = split(fit(proto, calibration), settings.samples)
            data = parts.calibration
            check_labels(proto, parts.search, settings.runtime)
        images = data if test is None else fit(proto, test)
        check_labels(proto, images, settings.runtime)
        providers(settings.provider)
        normalised = _normalised(proto, data, settings)
        profiled = profile_model(normalised, data, settings, progress, proto, table, work)
        journal = Journal(work.folder, identity(profiled.model, data, settings, table))

        def plan_for(wanted: Target, most: int = MOST_PLANS) -> Plan:
            key = f"plans/{wanted} {strategy} {most}"
            if key not in journal:
                journal.save(key, plan := fitted(proto, normalised, profiled, data, wanted, strategy, progress, most))
                return plan
            return journal.load(key)

        def carried_out(plan: Plan) -> onnx.ModelProto:
            return _applied(proto, normalised, plan, data, progress, work)

        curve: list[Visited] = []
        if target is not None:
            plan = plan_for(target)
            compressed = carried_out(plan)
        else:
            assert parts is not None and max_drop is not None
            once = partial(plan_for, most=1)  # each network is judged by the time that it takes, whatever was asked for
            found = search(proto, once, carried_out, parts, max_drop, settings.runtime, journal, strategy, progress)
            compressed, plan, curve = found.model, found.plan, found.curve
        timed = timed_here(profiled)
        known = {timed.batch: timed.seconds} if timed else {}
        batches = tuple(sorted({*BATCHES, *([plan.latency.batch] if plan.latency else [])}))
        report = verify(proto, compressed, images, runtime=settings.runtime, batches=batches, known=known)
        return Result(brought_in(compressed), plan, profiled, report.model_copy(update={"curve": curve}))


def check_output(path: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Refuse, before any work, an output that cannot be written or would replace an input, or an input's weights.

    Raises:
        OutputError: see above.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"the output '{path}' is a folder: give a file name")
    if not path.parent.is_dir():
        what = "is not a folder: give another path" if path.parent.exists() else "does not exist: make it first"
        raise OutputError(f"the output's folder '{path.parent}' {what}")
    if path.exists() and not path.is_file():
        raise OutputError(f"the output '{path}' is not a regular file: give another name")
    replaced = [place for place in (path, weights_of(path)) if place.exists()]
    for other in map(Path, inputs):
        read = [p for p in (other, *weights_beside(other)) if p.exists()] if replaced else []
        if os.path.realpath(path) == os.path.realpath(other) or any(a.samefile(b) for a in replaced for b in read):
            raise OutputError(f"the output '{path}' is an input too, or another output: give another name")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=path.parent):  # what a user may do says little, of /proc for one
            pass
    except OSError as e:
        raise OutputError(f"the output '{path}' cannot be written ({e.strerror or e}): give another place") from e
