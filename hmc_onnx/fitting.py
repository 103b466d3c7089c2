"""Plans for a share of the time, fitted to what whole networks of the planned shapes take.

The sum of the parts is near the whole's time and not equal to it: what lies between the layers shrinks with them, or
does not, and caches are shared. Time does not depend on the weights, so a planned network can be timed before any of
its layers is repaired; if it is too slow or too fast, the bound is corrected and the plan made again.
"""

from __future__ import annotations

import math

import onnx

from calib.batching import input_shapes
from calib.data import CalibrationData
from calib.latency import DISTURBED, PATIENCE, Estimate, calm
from calib.latency_table import this_machine
from calib.sessions import Session
from hmc_onnx.applying import shaped
from hmc_onnx.latencies import serving_feeds
from hmc_onnx.plans import Plan
from hmc_onnx.profiles import Profile
from hmc_onnx.settings import Strategy, Target
from hmc_onnx.solver import solve
from passes.errors import SettingsError
from passes.model import Model
from passes.progress import Progress, silent

__all__ = ["MOST_PLANS", "fitted"]

# A plan is taken when its network's time is at most this much above the target, or this much below.
ABOVE, BELOW = 0.005, 0.02
MOST_PLANS = 6


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
    plan = solve(profile, target, strategy)
    runtime = profile.settings.runtime
    if target.latency is None or plan.latency is None or plan.latency.machine != this_machine(runtime):
        return plan
    feeds, inputs = serving_feeds(data, plan.latency.batch), input_shapes(model.header, data)
    original, known = Session(served, runtime), profile.latency.seconds if profile.latency else math.inf
    correction, patience, best = 1.0, PATIENCE * most / MOST_PLANS, None
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
    assert best is not None
    return best


def _measured(plan: Plan, share: Estimate) -> Plan:
    assert plan.latency is not None
    latency = plan.latency.model_copy(update={"measured": share.value, "uncertainty": share.uncertainty})
    return plan.model_copy(update={"latency": latency})


def _misses(plan: Plan, target: Target) -> float:
    """How far a plan is from the bound: above it counts three times."""
    assert plan.latency is not None and plan.latency.measured is not None and target.latency is not None
    off = plan.latency.measured / target.latency - 1
    return 3 * off if off > 0 else -off
