"""What this machine's processor is, and which instructions it has."""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import cpuinfo

__all__ = ["instructions", "processor_name"]

# Vector instructions for float32, and those that multiply bytes, each from the best.
VECTORS = (("avx512f", "avx2", "avx"), ("amx_int8", "avx512_vnni", "avx512vnni", "avx_vnni"))


def instructions() -> frozenset[str]:
    """The processor's extensions under the names that Linux has for them, such as "avx512_vnni"."""
    return frozenset(_facts().get("flags", ()))


def processor_name() -> str:
    """The processor's name, with family, model, stepping, and its best instructions for float32 and for INT8.

    The name alone is not enough, because virtual machines often report only a family of processors, and may hide some
    of its instructions.
    """
    facts, own = _facts(), instructions()
    name = facts.get("brand_raw") or platform.processor() or platform.machine()
    best = [next((name for name in names if name in own), "") for names in VECTORS]
    family = "/".join(str(facts[k]) for k in ("family", "model", "stepping") if k in facts)
    return " ".join(part for part in (name, family, *best) if part)


@cache
def _facts() -> dict[str, Any]:
    """What py-cpuinfo knows, by its keys; nothing where it fails. It starts a process, which takes about a second."""
    try:
        return dict(cpuinfo.get_cpu_info())
    except (OSError, ValueError):  # the process did not start, or printed nothing
        return {}
