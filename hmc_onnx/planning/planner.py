"""Plans for a profile: those for a share of the time are corrected by what whole networks of the planned shapes take.

The sum of the parts is near the whole's time and not equal to it: what lies between the layers shrinks with them, or
does not, and caches are shared. Time does not depend on the weights, so a planned network can be timed before any of
its layers is repaired; if it is too slow or too fast, the bound is corrected and the integer program solved again.
"""

from __future__ import annotations

from contextlib import suppress

from calib.measure.latency import DISTURBED, PATIENCE, Estimate, calm
from calib.measure.latency_table import this_machine
from calib.runtime.sessions import Session
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.program import Program
from hmc_onnx.records.goal import Strategy, Target
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.profile import LatencyProfile, Profile
from hmc_onnx.rewriting.applying import shaped
from passes.core.errors import SettingsError

__all__ = ["MOST_PLANS", "Planner", "timed_here"]

# A plan is taken when its network's time is at most this share above the target, or this share below it.
ABOVE, BELOW = 0.005, 0.02
# How often a plan is made for one target.
MOST_PLANS = 6
# Factors on the bound to try where the sum of the parts cannot meet it: that sum errs by some percent.
HOPES = (1.05, 1.1, 1.15)


class Planner:
    """Makes plans for one profile and strategy; those made are kept in the run's checkpoint.

    Args:
        context: of the run.
        profile: that was made of it.
        strategy: which choices are allowed.
    """

    def __init__(self, context: Context, profile: Profile, strategy: Strategy = "hmc") -> None:
        self._context, self._profile = context, profile
        self._program = Program(profile, strategy)

    def plan(self, target: Target, most: int = MOST_PLANS) -> Plan:
        """The plan of least sensitivity whose network, as measured, keeps to the target's share of the time.

        Without a bound on the latency, or with times of another machine, nothing is measured.

        Args:
            target: see `Target`.
            most: how often to plan; with 1 the network's time is measured, and may be another than the target's.

        Raises:
            SettingsError: no combination of candidates meets the target.
        """
        checkpoint, key = self._context.checkpoint, f"plans/{target} {self._program.strategy} {most}"
        if key in checkpoint:
            return checkpoint.load(key)
        whole = timed_here(self._profile)
        if target.latency is None or whole is None:
            plan = self._program.solve(target)
        else:
            plan = self._refined(target, whole, most)
        checkpoint.save(key, plan)
        return plan

    def _refined(self, target: Target, whole: LatencyProfile, most: int) -> Plan:
        """A plan whose network's time has been measured and is near the target's."""
        assert target.latency is not None
        context, runtime = self._context, self._context.runtime
        plan, correction, refusal = self._first(target)
        original, known = Session(context.served, runtime), whole.seconds
        patience, best = PATIENCE * most / MOST_PLANS, None
        for attempt in range(most):
            context.progress("plan", attempt, most)
            session = Session(context.served_form(shaped(context, plan).finished(), timed_only=True), runtime)
            timings = calm([original, session], context.serving_feeds, known, patience)
            now, share = timings.latency(0).value, timings.ratio(1)
            patience = 0.0 if now > known * DISTURBED else patience  # the time to wait for calm is spent at most once
            known = min(known, now)
            plan = _measured(plan, share)
            if best is None or _distance(plan, target) < _distance(best, target):
                best = plan
            if attempt + 1 == most or -BELOW <= share.value / target.latency - 1 <= ABOVE:
                break
            correction *= target.latency * (1 - BELOW / 2) / share.value
            try:
                plan = self._program.solve(target, correction)
            except SettingsError:
                break
        context.progress("plan", most, most)
        assert best is not None and best.latency is not None and best.latency.measured is not None
        if refusal is not None and best.latency.measured > target.latency * (1 + BELOW):
            raise refusal
        return best

    def _first(self, target: Target) -> tuple[Plan, float, SettingsError | None]:
        """A plan to begin with, its correction, and the refusal where the sum of the parts is above the target.

        That sum errs by some percent, and by more if the machine was disturbed while the parts were timed.
        """
        try:
            return self._program.solve(target), 1.0, None
        except SettingsError as e:
            for correction in HOPES:
                with suppress(SettingsError):
                    return self._program.solve(target, correction), correction, e
            raise


def timed_here(profile: Profile) -> LatencyProfile | None:
    """What the profile's times are of, where they are this machine's."""
    whole = profile.latency
    return whole if whole is not None and whole.machine == this_machine(profile.settings.runtime) else None


def _measured(plan: Plan, share: Estimate) -> Plan:
    assert plan.latency is not None
    latency = plan.latency.model_copy(update={"measured": share.value, "uncertainty": share.uncertainty})
    return plan.model_copy(update={"latency": latency})


def _distance(plan: Plan, target: Target) -> float:
    """How far a plan's measured time is from the target, as a share of it: above it counts three times."""
    assert plan.latency is not None and plan.latency.measured is not None and target.latency is not None
    off = plan.latency.measured / target.latency - 1
    return 3 * off if off > 0 else -off
