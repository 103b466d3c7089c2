"""How many threads a session has where the user does not say: no more than the cores that this process may use.

onnxruntime's own default is one thread for each physical core of the machine, and heeds neither the affinity of the
process nor the CPU quota of a container. On a machine where neither is restricted the number is the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import loky

__all__ = ["default_threads", "unrestricted"]

TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """The first number of OMP_NUM_THREADS, where that is set; else the physical cores that this process may use.

    These are the physical cores that its affinity allows, and no more than its container's CPU quota, rounded up.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    allowed = loky.cpu_count()  # logical: of the affinity and the quota
    return max(1, min(allowed, _physical_cores() or loky.cpu_count(only_physical_cores=True)))


def unrestricted() -> bool:
    """Whether onnxruntime's own default is the number of `default_threads`, as nothing restricts this process."""
    return not os.environ.get("OMP_NUM_THREADS") and loky.cpu_count() == os.cpu_count()


def _physical_cores() -> int | None:
    """Physical cores that the affinity allows; None where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        siblings = {
            (TOPOLOGY / f"cpu{n}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
            for n in os.sched_getaffinity(0)
        }
    except OSError:
        return None
    return len(siblings)
