"""The default number of threads of a session: no more than the cores that this process may use.

onnxruntime's own default is one thread per physical core of the machine. It ignores the affinity of the process and the
CPU quota of a container. Where neither restricts the process, the two defaults are equal.
"""

from __future__ import annotations

import os
from pathlib import Path

import loky

__all__ = ["default_threads", "unrestricted"]

TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """The first number of OMP_NUM_THREADS if that is set, else the number of physical cores that this process may use.

    That is the number of physical cores in its affinity, limited by its container's CPU quota, rounded up.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    allowed = loky.cpu_count()  # logical cores, limited by affinity and quota
    return max(1, min(allowed, _physical_cores() or loky.cpu_count(only_physical_cores=True)))


def unrestricted() -> bool:
    """Whether nothing restricts this process, so that onnxruntime's own default equals `default_threads`."""
    return not os.environ.get("OMP_NUM_THREADS") and loky.cpu_count() == os.cpu_count()


def _physical_cores() -> int | None:
    """Number of physical cores in the process's affinity; None where the system does not tell."""
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
