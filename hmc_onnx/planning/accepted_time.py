"""Which measured times of a planned network are accepted for a target, and which plan comes closer to it."""

from __future__ import annotations

from calib.measure.latency import UNSURE, Timings
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import Plan

__all__ = ["ABOVE", "BELOW", "decided", "distance", "excess", "known"]

# A plan is accepted if its network's time is at most the share ABOVE above the target, or the share BELOW below it.
ABOVE, BELOW = 0.005, 0.02


def decided(timings: Timings, wanted: float) -> bool:
    """Whether it is sure that the second model's share of the first's time is accepted for a target, or that it is not.

    Where it is neither, more turns are worth their time.
    """
    share = timings.ratio(1)
    return all(abs(share.value - wanted * (1 + edge)) > share.uncertainty for edge in (ABOVE, -BELOW))


def known(plan: Plan) -> bool:
    """Whether something follows from the plan's time, if it was measured."""
    return plan.latency is None or plan.latency.uncertainty is None or plan.latency.uncertainty <= UNSURE


def excess(plan: Plan, target: Target) -> float:
    """By what share of the target a plan's measured time is above what is accepted; 0 where it is not measured."""
    if target.latency is None or plan.latency is None or plan.latency.measured is None:
        return 0.0
    return max(plan.latency.measured / target.latency - 1 - ABOVE, 0.0)


def distance(plan: Plan, target: Target) -> float:
    """Relative distance of a plan's measured time from the target; an excess counts three times."""
    assert plan.latency is not None and plan.latency.measured is not None and target.latency is not None
    off = plan.latency.measured / target.latency - 1
    return 3 * off if off > 0 else -off
