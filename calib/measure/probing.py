"""The time of probes (`passes.probe`) on onnxruntime.

On the CPU many probes share a session, and onnxruntime's profiler gives the time of each kernel. A probe's time is the
sum over the kernels between the Conv before it and the Conv behind it, with the layout changes in between. Other
providers do not wait for their kernels, so the profiler says nothing there. Instead each probe is timed as a session of
its own, and the time of the same session without the links is subtracted.

What disturbs a measurement comes in spells of a tenth of a second to minutes. So the sessions of many probes run in
turns: a short spell falls on all of them alike. Each has the same reference probes, which tell of a long one.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnx

from calib.measure.latency import Measurement, interleaved, undisturbed
from calib.runtime.quantisation import quantise_for_timing
from calib.runtime.sessions import CPU, KernelTime, Runtime, Session
from passes.core.errors import ModelError
from passes.core.progress import Progress, silent
from passes.graph.layers import Geometry
from passes.probe import AROUND, WITHIN_INT8, Parts, Probe, fed_type, link_names, probe_model

__all__ = ["time_probes"]

# A lot is a set of probes in one session. It runs at least LEAST_RUNS and at most MOST_RUNS times; in between it stops
# after SECONDS for each lot that runs in turns with it.
MOST_RUNS, LEAST_RUNS, SECONDS = 40, 20, 1.0
WARM_UP = 3
# Sessions of one probe are measured for this share of the time that whole models are (see `interleaved`).
SHARE = 0.05
# The profiler gives whole microseconds, and none for what takes less; about so many seconds are meant by that.
SHORTEST = 5e-7
# How often lots are run at most, as long as they are disturbed.
TRIES = 5
# Lots are run again for as long as the lots of one call took, and for so many seconds more.
PATIENCE = 1.0
# Finds the probe's number and the part in a kernel's name, which onnxruntime may prefix, for example for a cast.
OWNER = re.compile(r"(?:^|/)(\d+)/([A-Za-z]+\d*)")
# The references, two probes that every lot contains, and the positions of all maps of each: a large layer, and a chain
# of LINKS small ones. The former tells of other work on the cores; the latter, how long the threads take to meet
# after each kernel, which on a virtual machine depends on where its cores are. The profiler gives whole microseconds,
# so each must take many of them.
LARGE, LARGE_POSITIONS = Geometry(32, 32, (3, 3), (1, 1), (1,) * 4, (1, 1)), 8192
SMALL, SMALL_POSITIONS, LINKS = Geometry(16, 16, (1, 1), (1, 1), (0,) * 4, (1, 1)), 512, 16
# Lots are disturbed if a reference takes more than this times what it took where it was fastest. In calm lots that is
# up to 1.2 times as long; while the threads' cores do not share a cache, the chain takes 1.5 to 2 times as long.
APART = 1.25
# Upper bounds on the MACs of a lot, so that it does not run too long, and on its probes.
LOT_MACS, LOT_PROBES = 2e9, 32
# Upper bounds on the lots that run in turns, and on the bytes of their weights and activations together.
LOTS, LOTS_BYTES = 16, 2.5e8


def time_probes(
    probes: Sequence[Probe], runtime: Runtime = CPU, progress: Progress = silent
) -> Iterator[tuple[Probe, Measurement | None]]:
    """Yield each probe with its time in seconds as it is measured; None for one that onnxruntime cannot run.

    Where probes were disturbed, they are yielded once more when all are done, with the times that they have then. So
    are probes of earlier calls, where these tell that they were.
    """
    if probes:
        yield from (_by_kernel if runtime.on_cpu else _by_session)(probes, runtime, progress)
        progress("latency", len(probes), len(probes))


@dataclass
class _Lot:
    """Probes in one session, with the references last, and their lowest times so far."""

    probes: tuple[Probe, ...]
    times: list[Measurement] = field(default_factory=list)

    @classmethod
    def of(cls, probes: Sequence[Probe]) -> _Lot:
        """Probes of one batch size and element type, with references of the same."""
        return cls((*probes, *_references(probes[0].batch, probes[0].dtype)))

    @property
    def own(self) -> tuple[Probe, ...]:
        """The probes without the references."""
        return self.probes[:-2]

    def found(self) -> Iterator[tuple[Probe, Measurement]]:
        """The probes with their times."""
        return zip(self.own, self.times, strict=False)

    def add(self, times: list[Measurement]) -> None:
        """Keep the lower of each probe's times, as other load only ever adds to one."""
        self.times = [min(pair, key=lambda t: t.value) for pair in zip(self.times or times, times, strict=True)]


@dataclass
class _Turns:
    """Lots that run in turns, whose sessions are in memory at the same time."""

    lots: list[_Lot]
    runtime: Runtime
    tries: int = 0

    def run(self, tell: Callable[[float], None] = lambda share: None) -> list[_Lot]:
        """Run the lots, and keep the times; take out and return those that onnxruntime cannot run.

        Args:
            tell: is told, before each turn, which share of the turns is done.
        """
        times = _run([lot.probes for lot in self.lots], self.runtime, tell)
        ran, failed = [], []
        for lot, own in zip(self.lots, times, strict=True):
            if own is None:
                failed.append(lot)
            else:
                lot.add(own)
                ran.append(lot)
        self.lots = ran
        self.tries += 1
        for key, seconds in self._references():
            _fastest[key] = min(_fastest.get(key, math.inf), seconds)
        return failed

    @property
    def disturbed(self) -> bool:
        """Whether a reference took longer than it did elsewhere."""
        return any(seconds > APART * _fastest[key] for key, seconds in self._references())

    def _references(self) -> Iterator[tuple[tuple[str, Runtime], float]]:
        """The key of each reference in `_fastest`, and the median over the lots of its time in seconds."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for lot in self.lots:
            for probe, own in zip(lot.probes[-2:], lot.times[-2:], strict=True):
                seconds[str(probe)].append(own.value)
        return (((probe, self.runtime), statistics.median(every)) for probe, every in seconds.items())


# All that was timed in this process, and the lowest times of references.
_timed: list[_Turns] = []
_fastest: dict[tuple[str, Runtime], float] = {}


def _references(batch: int, dtype: str) -> tuple[Probe, Probe]:
    sizes = [math.isqrt(max(positions // batch, 1)) for positions in (LARGE_POSITIONS, SMALL_POSITIONS)]
    return Probe((LARGE,), (sizes[0],) * 2, batch, dtype), Probe((SMALL,) * LINKS, (sizes[1],) * 2, batch, dtype)


def _by_kernel(
    probes: Sequence[Probe], runtime: Runtime, progress: Progress
) -> Iterator[tuple[Probe, Measurement | None]]:
    done, start = 0, time.perf_counter()
    for lots in _in_turns(map(_Lot.of, _lots(probes))):
        own = sum(len(lot.own) for lot in lots)

        def tell(share: float, done: int = done, own: int = own) -> None:
            progress("latency", done + int(share * own), len(probes))

        yield from _first(lots, runtime, tell)
        done += own
    # as long again, and a little longer, for what was disturbed
    yield from _calmer(runtime, 2 * time.perf_counter() - start + PATIENCE)


def _first(
    lots: list[_Lot], runtime: Runtime, tell: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[Probe, Measurement | None]]:
    """The times of lots that run for the first time; the probes of one that cannot be run are run alone."""
    turns = _Turns(lots, runtime)
    failed = turns.run(tell)
    _timed.append(turns)
    for lot in turns.lots:
        yield from lot.found()
    for lot in failed:
        if len(lot.own) == 1:
            yield lot.own[0], None
        else:
            for alone in _in_turns(_Lot.of([probe]) for probe in lot.own):
                yield from _first(alone, runtime)


def _calmer(runtime: Runtime, end: float) -> Iterator[tuple[Probe, Measurement]]:
    """Run again what was disturbed, the latest first, until nothing is or the time `end` has come.

    It is run in rounds and not at once, as what disturbs it may last longer than it takes.
    """
    for _ in range(1, TRIES):
        for turns in reversed(_timed):
            if turns.runtime == runtime and turns.tries < TRIES and turns.disturbed:
                if time.perf_counter() > end:
                    return
                turns.run()
                for lot in turns.lots:
                    yield from lot.found()


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


def _in_turns(lots: Iterable[_Lot]) -> Iterator[list[_Lot]]:
    """Divide lots into those that run in turns."""
    turns: list[_Lot] = []
    held = 0
    for lot in lots:
        needed = _bytes(lot)
        if turns and (len(turns) == LOTS or held + needed > LOTS_BYTES):
            yield turns
            turns, held = [], 0
        turns.append(lot)
        held += needed
    if turns:
        yield turns


def _bytes(lot: _Lot) -> int:
    """About what a lot's weights, and the activations of its largest layer, take in float32."""
    links = [(link, math.prod(probe.size) * probe.batch) for probe in lot.probes for link in probe.links]
    activations = max(positions * (link.inputs + link.outputs) for link, positions in links)
    return 4 * (sum(link.parameters for link, _ in links) + activations)


def _served(model: onnx.ModelProto, probe: Probe, runtime: Runtime) -> onnx.ModelProto:
    if probe.dtype not in ("int8", WITHIN_INT8):
        return model
    in_float = link_names(model) if probe.dtype == WITHIN_INT8 else ()
    return quantise_for_timing(model, runtime.name, in_float, per_channel=False)  # of many probes, that takes long


def _feeds(session: Session, dtype: str) -> dict[str, np.ndarray]:
    rng, type_ = np.random.default_rng(0), fed_type(dtype)
    return {name: rng.standard_normal(shape).astype(type_) for name, shape in session.input_shapes.items()}


def _run(
    lots: Sequence[Sequence[Probe]], runtime: Runtime, tell: Callable[[float], None]
) -> list[list[Measurement] | None]:
    """The times of lots that run in turns; None for a lot that onnxruntime cannot run."""
    sessions: dict[int, tuple[Session, dict[str, np.ndarray]]] = {}
    for i, probes in enumerate(lots):
        with suppress(ModelError):
            session = Session(_served(probe_model(probes), probes[0], runtime), runtime, profiled=True)
            sessions[i] = session, _feeds(session, probes[0].dtype)
    start = time.perf_counter()
    for turn in range(WARM_UP + MOST_RUNS):
        if turn == WARM_UP:
            start = time.perf_counter()
        if turn >= WARM_UP + LEAST_RUNS and time.perf_counter() - start > SECONDS * len(lots):
            break
        tell(turn / (WARM_UP + MOST_RUNS))
        for i, (session, feeds) in list(sessions.items()):
            try:
                session.run(feeds)
            except ModelError:
                del sessions[i]
    found: list[list[Measurement] | None] = [None] * len(lots)
    for i, (session, _) in sessions.items():
        with suppress(ModelError):
            found[i] = _times(session, len(lots[i]))
    return found


def _times(session: Session, probes: int) -> list[Measurement]:
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


def _by_session(
    probes: Sequence[Probe], runtime: Runtime, progress: Progress
) -> Iterator[tuple[Probe, Measurement | None]]:
    for done, probe in enumerate(probes):
        progress("latency", done, len(probes))
        try:
            yield probe, _alone(probe, runtime)
        except ModelError:
            yield probe, None


def _alone(probe: Probe, runtime: Runtime) -> Measurement:
    models = [_served(probe_model([probe], parts), probe, runtime) for parts in (Parts.SPARE, Parts.BARE)]
    sessions = [Session(model, runtime) for model in models]
    timings = interleaved(sessions, _feeds(sessions[0], probe.dtype), share=SHARE)
    whole, rest = timings.latency(0), timings.latency(1)
    return Measurement(max(whole.value - rest.value, 0.0), float(np.hypot(whole.uncertainty, rest.uncertainty)))
