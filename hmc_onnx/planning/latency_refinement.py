"""Plans for a share of the time, fitted to what whole networks of the planned shapes take.

The sum of the parts is near the whole's time and not equal to it: what lies between the layers shrinks with them, or
does not, and caches are shared. Time does not depend on the weights, so a planned network can be timed before any of
its layers is repaired; if it is too slow or too fast, the bound is corrected and the plan made again.
"""

from __future__ import annotations

from contextlib import suppress

import onnx

from calib.data.calibration import CalibrationData
from calib.measure.latency import DISTURBED, PATIENCE, Estimate, calm
from calib.measure.latency_table import this_machine
from calib.runtime.batching import input_shapes
from calib.runtime.sessions import Session
from hmc_onnx.planning.program import solve
from hmc_onnx.profiling.candidate_times import serving_feeds
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import LatencyProfile, Profile
from hmc_onnx.records.settings import Strategy, Target
from hmc_onnx.rewriting.applying import shaped
from passes.core.errors import SettingsError
from passes.core.progress import Progress, silent
from passes.graph.model import Model

__all__ = ["MOST_PLANS", "fitted", "timed_here"]

# A plan is taken when its network's time is at most this much above the target, or this much below.
ABOVE, BELOW = 0.005, 0.02
MOST_PLANS = 6
# By how much the sum of the parts may be above the target, for a network to be tried.
HOPES = (1.05, 1.1, 1.15)


def fitted(
    served: onnx.ModelProto,
    model: Model,
    profile: Profile,
    data: CalibrationData,
    target: Target,
    strategy: Strategy = "hmc",
    progress: Progress = silent,
    most: int = MOST_PLANS,
) -> Plan:
    """The plan of least sensitivity whose network, as measured, keeps to the target's share of the original's time.

    Without a bound on the latency, or with times of another machine, it is the plan of `solve`.

    Args:
        served: the original, as it is served.
        model: the same, normalised.
        profile, target, strategy: as for `solve`.
        data: images to run.
        progress: called as the work goes on.
        most: plans to make; with one its time is measured, and may be another than the target's.

    Raises:
        SettingsError: no combination of candidates meets the target.
    """
    runtime, whole = profile.settings.runtime, timed_here(profile)
    if target.latency is None or whole is None:
        return solve(profile, target, strategy)
    plan, correction, refusal = _first(profile, target, strategy)
    feeds, inputs = serving_feeds(data, whole.batch), input_shapes(model.header, data)
    original, known = Session(served, runtime), whole.seconds
    patience, best = PATIENCE * most / MOST_PLANS, None
    for attempt in range(most):
        progress("plan", attempt, most)
        session = Session(shaped(model, plan, inputs).finished(), runtime)
        timings = calm([original, session], feeds, known, patience)
        now, share = timings.latency(0).value, timings.ratio(1)
        patience = 0.0 if now > known * DISTURBED else patience  # it is had once
        known = min(known, now)
        plan = _measured(plan, share)
        if best is None or _misses(plan, target) < _misses(best, target):
            best = plan
        if attempt + 1 == most or -BELOW <= share.value / target.latency - 1 <= ABOVE:
            break
        correction *= target.latency * (1 - BELOW / 2) / share.value
        try:
            plan = solve(profile, target, strategy, correction)
        except SettingsError:
            break
    progress("plan", most, most)
    assert best is not None and best.latency is not None and best.latency.measured is not None
    if refusal is not None and best.latency.measured > target.latency * (1 + BELOW):
        raise refusal
    return best


def timed_here(profile: Profile) -> LatencyProfile | None:
    """What the profile's times are of, where they are this machine's."""
    whole = profile.latency
    return whole if whole is not None and whole.machine == this_machine(profile.settings.runtime) else None


def _first(profile: Profile, target: Target, strategy: Strategy) -> tuple[Plan, float, SettingsError | None]:
    """A plan to begin with, its correction, and the refusal where the sum of the parts cannot be within the target.

    That errs by some percent, and the more so if the machine was disturbed when the parts were timed.
    """
    try:
        return solve(profile, target, strategy), 1.0, None
    except SettingsError as e:
        for correction in HOPES:
            with suppress(SettingsError):
                return solve(profile, target, strategy, correction), correction, e
        raise


def _measured(plan: Plan, share: Estimate) -> Plan:
    assert plan.latency is not None
    latency = plan.latency.model_copy(update={"measured": share.value, "uncertainty": share.uncertainty})
    return plan.model_copy(update={"latency": latency})


def _misses(plan: Plan, target: Target) -> float:
    """How far a plan is from the bound: above it counts three times."""
    assert plan.latency is not None and plan.latency.measured is not None and target.latency is not None
    off = plan.latency.measured / target.latency - 1
    return 3 * off if off > 0 else -off
