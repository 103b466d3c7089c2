"""Makes plans for a profile. Plans for a latency are refined by measuring whole networks of the planned shapes.

The sum of the layers' times only approximates the time of the network: operators between the layers may or may not
shrink with them, and caches are shared. As time does not depend on the weights, a planned network can be timed before
its layers are repaired. If it is too slow or too fast, the bound is corrected and the integer program is solved again.
On a machine that is too busy for a time to be known, the sum is kept.

The sum of sensitivities, too, only approximates what is lost. So the plan is compared with others by trials on the
network itself (`hmc_onnx.planning.trials`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from operator import itemgetter

from calib.measure.latency import DISTURBED, PATIENCE, UNSURE, Measurement, calm, surer
from calib.measure.latency_table import this_machine
from calib.runtime.sessions import Session
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.accepted_time import ABOVE, BELOW, decided, distance, excess, known
from hmc_onnx.planning.program import Program
from hmc_onnx.planning.trials import least_in_trials
from hmc_onnx.records.goal import Strategy, Target
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import LatencyProfile, Profile
from hmc_onnx.rewriting.planned_shapes import shaped
from passes.core.errors import HmcWarning, SettingsError

__all__ = ["MOST_PLANS", "Planner", "next_correction", "timed_here"]

# Upper bound on the plans that are made for one target by one strategy.
MOST_PLANS = 6
# As many of them at most are made for a trial, which begin with the correction that the first plan ended with.
MOST_TRIED = 3
# Strategies whose plans are plans of "hmc", too.
NARROWER: tuple[Strategy, ...] = ("prune", "lowrank", "nahc", "ahc")
# Factors on the bound to try if no sum of layers' times meets it, because that sum is off by some percent.
HOPES = (1.05, 1.1, 1.15)

Solve = Callable[[float], Plan]  # makes a plan, given a correction
Made = Callable[[Program], Plan]  # makes a plan by a program


class Planner:
    """Makes plans for one profile and strategy, and stores those of known time in the run's checkpoint.

    Args:
        context: the run.
        profile: the profile of the run's model.
        strategy: which choices are allowed.
    """

    def __init__(self, context: Context, profile: Profile, strategy: Strategy = "hmc") -> None:
        self._context, self._profile = context, profile
        self._program = Program(profile, strategy)

    @property
    def latency(self) -> LatencyProfile | None:
        """The times of the whole model, where latency was measured."""
        return self._profile.latency

    @cached_property
    def _narrower(self) -> list[Program]:
        return [Program(self._profile, strategy) for strategy in NARROWER]

    def plan(self, target: Target, most: int = MOST_PLANS) -> Plan:
        """The plan of least sensitivity that meets the target; for a latency, the network is measured.

        Without a bound on the latency, or with times of another machine, nothing is measured.

        Args:
            target: see `Target`.
            most: upper bound on the plans to make, for each strategy whose plans are measured. With 1, the network is
                measured but its plan is not corrected, so its time may miss the target.

        Raises:
            SettingsError: no combination of candidates meets the target.
        """
        checkpoint, key = self._context.checkpoint, f"plans/{target} {self._program.strategy} {most}"
        if key in checkpoint:
            return checkpoint.load(key)
        whole, watch = timed_here(self._profile), None
        if target.latency is not None and whole is not None:
            watch = _Stopwatch(self._context, whole.seconds, PATIENCE * most / MOST_PLANS)

        def made(program: Program, branches: int | None = None) -> Plan:
            if watch is None:
                return program.solve(target, branches=branches)
            many = most if branches is None else min(most, MOST_TRIED)
            return self._refined(lambda correction: program.solve(target, correction, branches), target, watch, many)

        def hoped(branches: int) -> Plan:
            return self._program.solve(target, 1.0 if watch is None else watch.correction, branches)

        plan = made(self._program)
        if most > 1 and known(plan):
            if self._program.strategy == "hmc" and watch is not None:
                plan = self._least(plan, target, made)
            if self._program.removes.any():
                plan = least_in_trials(self._context, plan, target, hoped, partial(made, self._program))
        if known(plan):
            checkpoint.save(key, plan)
        else:  # it is made anew where the run goes on
            warnings.warn(
                "the machine was too busy to time the planned network, so the plan goes by the times of its layers "
                "alone and may miss the target: see what the comparison at the end says, and plan again when nothing "
                "else runs",
                HmcWarning,
                stacklevel=2,
            )
        return plan

    def _least(self, plan: Plan, target: Target, made: Made) -> Plan:
        """The plan of least sensitivity within the target, of one plan and of those of each narrower strategy.

        The sum of the layers' times is off by more for some changes than for others, and one correction for all makes
        the bound too tight for the others. A narrower strategy, whose plans are this one's, too, may come out ahead.
        """
        for program in self._narrower:
            with suppress(SettingsError):
                if program.solve(target).sensitivity < plan.sensitivity:
                    other = made(program)
                    if known(other):
                        plan = min(plan, other, key=lambda p: _loss(p, target))
        return plan.model_copy(update={"strategy": self._program.strategy})

    def _refined(self, solve: Solve, target: Target, watch: _Stopwatch, most: int) -> Plan:
        """The plan, among those made, whose network's measured time is closest to the target.

        Args:
            solve: makes a plan, given a correction.
            target: the target.
            watch: times networks for it.
            most: upper bound on the plans to make.
        """
        assert target.latency is not None
        plan, correction, refusal = _first(solve, watch.correction)
        best: Plan | None = None
        at_rest = self._program.unchanged_share
        points = [(at_rest / target.latency, at_rest)]  # the network without a change, whose time is known
        for attempt in range(most):
            self._context.progress("plan", attempt, most)
            share = watch.share(plan, target.latency)
            plan = _measured(plan, share)
            if best is None or distance(plan, target) < distance(best, target):
                best, watch.correction = plan, correction
            kept = -BELOW <= share.value / target.latency - 1 <= ABOVE
            if attempt + 1 == most or kept or share.uncertainty > UNSURE:
                break
            points.append((correction, share.value))
            correction = next_correction(points, target.latency * (1 - BELOW / 2))
            try:
                plan = solve(correction)
            except SettingsError:
                break
            if not plan.changes and at_rest > target.latency * (1 + ABOVE):
                break  # the measurement was wrong: the unchanged network is known to be too slow
        self._context.progress("plan", most, most)
        assert best is not None and best.latency is not None and best.latency.measured is not None
        if refusal is not None and best.latency.measured > target.latency * (1 + BELOW):
            raise refusal
        return best


class _Stopwatch:
    """Times networks of planned shapes beside the original, for one target.

    Args:
        context: the run.
        known: seconds that the original has been measured to take.
        patience: seconds to wait for calm; they are spent once at most.

    Attributes:
        correction: the factor on the bound by which the last plan came closest to the target; 1 before the first.
    """

    def __init__(self, context: Context, known: float, patience: float) -> None:
        self._context, self._known, self._patience = context, known, patience
        self._original = Session(context.served, context.runtime)
        self.correction = 1.0

    def share(self, plan: Plan, wanted: float) -> Measurement:
        """The time of a plan's network, as a share of the original's.

        It is timed until it is sure whether that is accepted for a target of `wanted`, or for as long as any network.
        """
        context = self._context
        planned = context.served_form(shaped(context, plan).finished(), timed_only=True, in_float=plan.in_float)
        both = [self._original, Session(planned, context.runtime)]
        timings = calm(both, context.serving_feeds, self._known, self._patience, partial(decided, wanted=wanted))
        timings = surer(timings, both, context.serving_feeds, time.perf_counter() + self._patience)
        now = timings.latency(0).value
        if now > self._known * DISTURBED:
            self._patience = 0.0
        self._known = min(self._known, now)
        return timings.ratio(1)


def _first(solve: Solve, start: float) -> tuple[Plan, float, SettingsError | None]:
    """The first plan, its correction, and the error that the uncorrected target raised, if it did.

    The sum of the layers' times may be some percent too high, or more if the machine was busy when they were measured.
    So a target that seems out of reach is tried with corrections (`HOPES`). `start` is the first correction to try.
    """
    try:
        return solve(start), start, None
    except SettingsError as e:
        for correction in (c for c in (1.0, *HOPES) if c > start):
            with suppress(SettingsError):
                return solve(correction), correction, e
        raise


def next_correction(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """The factor on the bound with which to plan next.

    It is interpolated between the plans whose networks were measured to be nearest to the wanted time, one faster and
    one slower. Where there are no two, times are taken to be proportional to the bound.

    Args:
        points: the factor and the measured share of the original's time, of the network without a change, and then of
            the plans so far.
        wanted: the share to come to.
    """
    fast = max((p for p in points if p[1] <= wanted), key=itemgetter(1, 0), default=None)
    slow = min((p for p in points if p[1] > wanted), key=itemgetter(1), default=None)
    if fast is None or slow is None or fast[0] >= slow[0]:
        correction, measured = points[-1]
        return correction * wanted / measured
    return fast[0] + (wanted - fast[1]) / (slow[1] - fast[1]) * (slow[0] - fast[0])


def timed_here(profile: Profile) -> LatencyProfile | None:
    """The profile's latency if it was measured on this machine, else None."""
    whole = profile.latency
    return whole if whole is not None and whole.machine == this_machine(profile.settings.runtime) else None


def _measured(plan: Plan, share: Measurement) -> Plan:
    assert plan.latency is not None
    latency = plan.latency.model_copy(update={"measured": share.value, "uncertainty": share.uncertainty})
    return plan.model_copy(update={"latency": latency})


def _loss(plan: Plan, target: Target) -> tuple[float, float]:
    """Orders plans: those within the target come first, the one that loses least before the others."""
    return excess(plan, target), plan.sensitivity
