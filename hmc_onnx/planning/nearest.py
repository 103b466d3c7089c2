"""The plan that comes nearest to a target that may be out of reach."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from hmc_onnx.records.goal import Target, Unreachable
from hmc_onnx.records.plan import Plan
from passes.core.errors import HmcWarning

__all__ = ["nearest"]

# Factors on the least possible value of each bound: the least of several cannot always be had together.
SLACK = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0)


def nearest(target: Target, plan: Callable[[Target], Plan]) -> Plan:
    """The plan for a target, or else for the least above it that can be reached, of which the user is warned.

    Args:
        target: what is wanted.
        plan: makes a plan; raises Unreachable.
    """
    try:
        return plan(target)
    except Unreachable as e:
        error = e
    for slack in SLACK:
        wanted = Target(
            **{
                name: min(max(share, slack * (getattr(error.least, name) or 0.0)), 1.0)
                for name, share in target
                if share is not None
            }
        )
        try:
            found = plan(wanted)
        except Unreachable as e:
            error = Unreachable(str(e), _largest(error.least, e.least))
            continue
        warnings.warn(
            f"target {target} cannot be reached on this model: the nearest that can be, {wanted}, is taken",
            HmcWarning,
            stacklevel=2,
        )
        return found
    raise error


def _largest(a: Target, b: Target) -> Target:
    """The larger bound of each kind."""
    both = {name: [v for v in (getattr(a, name), getattr(b, name)) if v is not None] for name in Target.model_fields}
    return Target(**{name: max(values) for name, values in both.items() if values})
