"""The time of probes (`passes.probe`) on onnxruntime.

On the CPU many probes share a session, and onnxruntime's profiler gives the time of each kernel. A probe's time is the
sum over the kernels between the Conv before it and the Conv behind it, with the layout changes in between. Other
providers do not wait for their kernels, so the profiler says nothing there. Instead each probe is timed as a session of
its own, and the time of the same session without the links is subtracted.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from calib.measure.latency import DISTURBED, Measurement, interleaved, undisturbed
from calib.runtime.quantisation import quantise_for_timing
from calib.runtime.sessions import CPU, KernelTime, Runtime, Session
from passes.core.errors import ModelError
from passes.core.progress import Progress, silent
from passes.graph.layers import Geometry
from passes.probe import AROUND, WITHIN_INT8, Parts, Probe, fed_type, link_names, probe_model

__all__ = ["time_probes"]

# A lot is a set of probes in one session. It runs at least LEAST_RUNS and at most MOST_RUNS times; in between it stops
# after SECONDS.
MOST_RUNS, LEAST_RUNS, SECONDS = 40, 20, 1.0
WARM_UP = 3
# Sessions of one probe are measured for this share of the time that whole models are (see `interleaved`).
SHARE = 0.05
# The profiler gives whole microseconds, and none for what takes less; about so many seconds are meant by that.
SHORTEST = 5e-7
# How often a lot is measured at most, while its reference probe is disturbed.
TRIES = 5
# Finds the probe's number and the part in a kernel's name, which onnxruntime may prefix, for example for a cast.
OWNER = re.compile(r"(?:^|/)(\d+)/([A-Za-z]+\d*)")
# A probe that every lot contains, to tell whether it was disturbed, and the positions of all its maps. The profiler
# gives whole microseconds, so the reference must take many of them.
REFERENCE, POSITIONS = Geometry(32, 32, (3, 3), (1, 1), (1,) * 4, (1, 1)), 8192
_references: dict[tuple[str, Runtime, int], float] = {}
# Upper bounds on the MACs of a lot, so that it does not run too long, and on its probes.
LOT_MACS, LOT_PROBES = 2e9, 32


def time_probes(
    probes: Sequence[Probe], runtime: Runtime = CPU, progress: Progress = silent
) -> Iterator[tuple[Probe, Measurement | None]]:
    """Yield each probe with its time in seconds as it is measured; None for one that onnxruntime cannot run."""
    by_kernel = runtime.on_cpu
    done = 0
    for lot in _lots(probes):
        progress("latency", done, len(probes))
        yield from zip(lot, _time_lot(lot, runtime, by_kernel), strict=True)
        done += len(lot)
    if probes:
        progress("latency", len(probes), len(probes))


def _lots(probes: Sequence[Probe]) -> Iterator[list[Probe]]:
    """Divide the probes into lots; a lot has one batch size and element type."""
    waiting: dict[tuple[int, str], list[Probe]] = defaultdict(list)
    for probe in probes:
        lot = waiting[probe.batch, probe.dtype]
        if lot and (len(lot) == LOT_PROBES or sum(p.macs for p in lot) + probe.macs > LOT_MACS):
            yield waiting.pop((probe.batch, probe.dtype))
            lot = waiting[probe.batch, probe.dtype]
        lot.append(probe)
    yield from waiting.values()


def _time_lot(lot: list[Probe], runtime: Runtime, by_kernel: bool) -> list[Measurement | None]:
    try:
        return list(_by_kernel(lot, runtime) if by_kernel else _by_session(lot, runtime))
    except ModelError:
        if len(lot) == 1:
            return [None]
        return [time for probe in lot for time in _time_lot([probe], runtime, by_kernel)]


def _served(model: onnx.ModelProto, probe: Probe, runtime: Runtime) -> onnx.ModelProto:
    if probe.dtype not in ("int8", WITHIN_INT8):
        return model
    in_float = link_names(model) if probe.dtype == WITHIN_INT8 else ()
    return quantise_for_timing(model, runtime.name, in_float, per_channel=False)  # of many probes, that takes long


def _feeds(session: Session, dtype: str) -> dict[str, np.ndarray]:
    rng, type_ = np.random.default_rng(0), fed_type(dtype)
    return {name: rng.standard_normal(shape).astype(type_) for name, shape in session.input_shapes.items()}


def _by_kernel(lot: Sequence[Probe], runtime: Runtime) -> list[Measurement]:
    """Time a lot with the reference probe; while that takes longer than in an earlier lot, the lot is run again.

    The earlier lot was of about as much work: large probes take the processor's caches, and slow the reference down.
    Repeats end where one does not make the reference faster, as the load lasts then.
    """
    size = math.isqrt(max(POSITIONS // lot[0].batch, 1))
    reference = Probe((REFERENCE,), (size, size), lot[0].batch, lot[0].dtype)
    key = (str(reference), runtime, sum(probe.macs for probe in lot).bit_length())
    model = _served(probe_model([*lot, reference]), reference, runtime)
    best: list[Measurement] = []
    for _ in range(TRIES):
        found = _run_lot(model, reference.dtype, len(lot) + 1, runtime)
        lasting = bool(best) and found[-1].value * DISTURBED > best[-1].value
        best = [min(pair, key=lambda e: e.value) for pair in zip(best, found, strict=True)] if best else found
        _references[key] = min(_references.get(key, math.inf), best[-1].value)
        if lasting or best[-1].value <= _references[key] * DISTURBED:
            break
    return best[:-1]


def _run_lot(model: onnx.ModelProto, dtype: str, probes: int, runtime: Runtime) -> list[Measurement]:
    session = Session(model, runtime, profiled=True)
    feeds = _feeds(session, dtype)
    start = time.perf_counter()
    for run in range(WARM_UP + MOST_RUNS):
        if run == WARM_UP:
            start = time.perf_counter()
        if run >= WARM_UP + LEAST_RUNS and time.perf_counter() - start > SECONDS:
            break
        session.run(feeds)
    seconds = _probe_seconds(session.profile(), probes)
    if any(len(s) <= WARM_UP or np.isnan(s).any() for s in seconds):
        raise ModelError("onnxruntime's profile does not name the model's nodes")
    return [undisturbed(np.maximum(s[WARM_UP:], SHORTEST)) for s in seconds]


def _probe_seconds(kernels: Sequence[KernelTime], probes: int) -> list[np.ndarray]:
    """Seconds of each probe in each run: one array (runs,) for each probe; NaN where no kernel is known to be its own.

    A kernel belongs to the probe in its name. One that onnxruntime has inserted to change a layout has a name of its
    own; it belongs to the kernel that runs next, except at the ends of the model, where it counts for no probe. A cast
    of what the links read has the name of the Conv before them, and belongs to the links.
    """
    runs: list[dict[int, float]] = []
    seen: set[str] = set()
    loose: list[KernelTime] = []
    behind = True
    for kernel in kernels:
        owner = OWNER.search(kernel.name)
        if owner is None:
            loose += [] if behind else [kernel]
            continue
        if not runs or kernel.name in seen:  # this kernel has run already, so the next run begins
            runs.append(defaultdict(float))
            seen.clear()
        seen.add(kernel.name)
        probe, part = int(owner[1]), owner[2]
        if part == "before" and kernel.op == "DequantizeLinear":
            part = "cast"
        if part == "other":
            while loose and loose[-1].op == "ReorderInput":
                loose.pop()
        if part in ("before", "pool", "pool2"):
            loose.clear()
        if loose or part not in AROUND:
            runs[-1][probe] += sum(k.seconds for k in loose) + (0.0 if part in AROUND else kernel.seconds)
        loose.clear()
        behind = part.startswith("pool")
    return [np.array([run.get(i, np.nan) for run in runs]) for i in range(probes)]


def _by_session(lot: Sequence[Probe], runtime: Runtime) -> Iterator[Measurement]:
    for probe in lot:
        models = [_served(probe_model([probe], parts), probe, runtime) for parts in (Parts.SPARE, Parts.BARE)]
        sessions = [Session(model, runtime) for model in models]
        timings = interleaved(sessions, _feeds(sessions[0], probe.dtype), share=SHARE)
        whole, rest = timings.latency(0), timings.latency(1)
        yield Measurement(max(whole.value - rest.value, 0.0), float(np.hypot(whole.uncertainty, rest.uncertainty)))
