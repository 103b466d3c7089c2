"""The time of a model, of its layers, and of the candidates for them: looked up in a latency table, or measured.

A chain's time is that of its probe: its links and the elementwise operators that follow the layer. Of a layer that
several nodes apply it is the sum over them, each with a probe of its own. Where a probe cannot be timed, the time is
assumed to be proportional to MACs: for a layer as a part of all layers, and for a chain compared with its layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from calib.measure.kernel_times import KernelTimes, kernel_times
from calib.measure.latency import DISTURBED, interleaved
from calib.measure.latency_table import ProbeTime, cached_table, read_table, this_machine
from calib.runtime.sessions import Runtime, Session
from hmc_onnx.analysis.compressible import owners
from hmc_onnx.execution.context import Context
from hmc_onnx.records.profile import LatencyProfile
from passes.core.errors import HmcWarning, OutputError, SettingsError
from passes.decompose import DECOMPOSITIONS
from passes.graph.layers import Geometry
from passes.graph.model import element_type
from passes.graph.shapes import infer_shapes
from passes.probe import WITHIN_INT8, Probe, epilogue

__all__ = ["Chain", "Clock", "default_align"]

Chain = tuple[Geometry, ...]

# The default alignment, in channels. TensorRT processes 8 channels together in float16.
DEFAULT_ALIGN, TENSORRT_ALIGN = 4, 8
TENSORRT = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
# Alignments to try, from the widest.
STEPS = (64, 32, 16, 8, 4, 2)
# A layer with fewer inputs or outputs is not what it is looked for on, unless there are no others.
NARROW = 16
# A step is accepted as the alignment when a width that is half a step narrower saves less than this share of the time
# that it would save if time were proportional to width.
PAYS = 0.5
# Share of the model's time by which the time of its layers alone may differ from that of their kernels within it, and
# how often both are measured again if it differs by more.
APART, TRIES = 0.2, 3


class Clock:
    """The times of one model on one machine.

    Where the context names the table of another machine, nothing is measured. Otherwise this machine's table in the
    cache is used, and times that it lacks are measured and added. A run with a checkpoint keeps a copy of its own,
    because later runs may change the one in the cache.

    Raises:
        SettingsError: the provider does not work on this machine, or the model declares another batch size.
    """

    def __init__(self, context: Context) -> None:
        self._context, self.runtime = context, context.runtime
        self.layers, self.batch = context.compressible.layers, context.serving_batch
        self._key = f"model {context.digest} × {self.batch}"
        precision = context.settings.precision
        self._served_key = self._key if precision == "fp32" else f"{self._key} {precision}"
        on_cpu = self.runtime.on_cpu
        # onnxruntime has no float16 kernels on CPUs, so a plan for float16 uses the times of float32 there
        self._dtype = {"int8": "int8", "fp16": None if on_cpu else "float16"}.get(precision)
        table, folder = context.latency_table, context.checkpoint.folder
        self._foreign = table is not None
        self._cached: Path | None = None
        self._kept: Path | None = None
        self._settled = self._foreign  # whether the time of the whole model must not be measured again
        if table is None:
            table, path = cached_table(this_machine(self.runtime))
            self._cached = path
            self._kept = None if folder is None else folder / "latency.json"
            if self._kept is not None and self._kept.exists():
                own = read_table(self._kept)
                self._settled = own.machine == table.machine
                table = own if self._settled else table
        self.table = table
        graph, shapes = context.normal.graph, infer_shapes(context.normal, context.inputs)
        uses = owners(self.layers)
        self._kinds = {
            n.name: (element_type(n.inputs[1]).name, epilogue(graph, n, shapes)) for n in graph.nodes if n.name in uses
        }
        self._macs = {n: s.macs() for n, s in self.layers.items()}
        self._by_macs: set[str] = set()
        self._timed = False

    def time_whole(self) -> ProbeTime:
        """The time of a run of the whole model. A cached time is replaced if it was measured on a busy machine.

        Raises:
            SettingsError: the table of another machine lacks this time.
        """
        entry = self.table.entries.get(self._key) if self._served_key in self.table.entries else None
        if self._foreign and (entry is None or entry.seconds is None):
            raise SettingsError(
                f"the latency table (of {self.table.machine}) has no time of this model at batch {self.batch}: make it "
                f"there with 'hmc-onnx latency measure MODEL --batch {self.batch}'"
            )
        if entry is not None and (self._settled or self._timed):
            if self._foreign and not entry.usable and not self._timed:
                self._timed = True
                warnings.warn(
                    f"the machine was busy while the latency table (of {self.table.machine}) was made, so plans may be "
                    "off: make it again there when nothing else runs",
                    HmcWarning,
                    stacklevel=2,
                )
            return entry
        self._timed = True
        models = {self._key: self._context.served}
        if self._served_key != self._key:
            models[self._served_key] = self._context.served_form(self._context.normal.finished(), timed_only=True)
        self._time_models(models)
        self._make_comparable(models)
        self.keep()  # also where the cache had all, as a later run may change it
        return self.table.entries[self._key]

    def _time_models(self, models: Mapping[str, onnx.ModelProto]) -> None:
        """Time whole models side by side; times that the table has stay, unless they are of a busier machine."""
        timings = interleaved([Session(m, self.runtime) for m in models.values()], self._context.serving_feeds)
        first = self.table.entries.get(self._key)
        known = None if first is None or not set(models) <= set(self.table.entries) else first.seconds
        if known is not None and known <= DISTURBED * timings.latency(0).value:
            return
        for i, key in enumerate(models):
            own = timings.latency(i)  # all from one measurement, so that they can be compared
            self.table.put(key, ProbeTime.of(own))
        self.keep()

    def _make_comparable(self, models: Mapping[str, onnx.ModelProto]) -> None:
        """Time the layers alone, and see whether that agrees with the time of the whole model.

        Both are timed one after the other, and what disturbs one of them looks like work that no choice can save. Where
        the rest of the model's time contradicts the times of its kernels, all is timed again; and where no run of the
        whole is calm, its time is that of its kernels.
        """
        layers = [(name, (subject.layer.geometry,)) for name, subject in self.layers.items()]
        self.measure(layers)
        probes, feeds = [probe for layer in layers for probe in self.probes(*layer)], self._context.serving_feeds
        share = 0.0
        for attempt in range(TRIES):
            by_kernel = kernel_times(models[self._served_key], feeds, self.runtime)
            if by_kernel is None or any(self.table.entries[str(probe)].seconds is None for probe in probes):
                return  # there is nothing to compare: onnxruntime does not say, or cannot run a layer alone
            share = by_kernel.layers / by_kernel.whole
            if self._apart(probes, share) <= APART:
                return
            self._time_models(models)
            self.table.measure_again(probes, self.runtime, self._context.progress)
            if attempt > 0:
                for key, model in models.items():
                    self._lower(key, kernel_times(model, feeds, self.runtime))
            self.keep()
        if self._apart(probes, share) > APART:
            warnings.warn(
                "the times of the layers alone contradict that of the whole model, however often they are measured "
                "(other work runs here, or the processor's speed drifts), so plans for a latency may be off: see what "
                "the comparison at the end says, and if it misses the target, have all timed anew when nothing else "
                "runs (after 'hmc-onnx latency clear')",
                HmcWarning,
                stacklevel=2,
            )

    def _apart(self, probes: Sequence[Probe], share: float) -> float:
        """How far the share of the model's time that its layers take alone is from that which they take within it."""
        entries, whole = [self.table.entries[str(probe)] for probe in probes], self.table.entries[self._served_key]
        if whole.seconds is None or not all(entry.usable for entry in entries):
            return np.inf
        return abs(sum(entry.seconds or 0.0 for entry in entries) / whole.seconds - share)

    def _lower(self, key: str, found: KernelTimes | None) -> None:
        entry = self.table.entries[key]
        if found is not None and entry.seconds is not None and found.whole < entry.seconds:
            self.table.put(key, entry.model_copy(update={"seconds": found.whole}))

    def probes(self, name: str, chain: Chain, in_float: bool = False) -> list[Probe]:
        """A layer's chain as a probe for each use of the layer; `in_float` says that it is float32 within INT8."""
        found = []
        for use in self.layers[name].uses:
            dtype, follows = self._kinds[use.name]
            kind = WITHIN_INT8 if in_float else self._dtype or dtype
            found.append(Probe(chain, use.size, self.batch * use.maps, kind, follows))
        return found

    def seconds(self, name: str, chain: Chain, in_float: bool = False) -> float | None:
        """Seconds of a layer's chain, over all uses of the layer; None if it could not be timed."""
        each = [self.table.seconds(probe) for probe in self.probes(name, chain, in_float)]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if len(known) == len(each) else None

    def measure(self, chains: Iterable[tuple[str, Chain]], in_float: bool = False) -> None:
        """Time the chains that the table lacks, and write the table.

        Args:
            chains: pairs of a layer's name and a chain for it.
            in_float: whether they are float32 within a network in INT8.
        """
        if self._foreign:
            return
        self.table.measure(
            (probe for name, chain in chains for probe in self.probes(name, chain, in_float)),
            self.runtime,
            self._context.progress,
            self.keep,
        )

    def keep(self) -> None:
        """Write the table to the cache and the checkpoint; a place that cannot be written is not tried again."""
        try:
            if self._cached is not None:
                self.table.add_to(self._cached)
        except OutputError:
            self._cached = None  # no error: the times can be measured again
        try:
            if self._kept is not None:
                self.table.write(self._kept)
        except OutputError:
            self._kept = None

    def times(self, name: str, chains: Collection[Chain]) -> dict[Chain, float]:
        """Seconds of each of some chains for a layer; the layer itself is a chain of one link."""
        whole = self.table.entries[self._served_key].seconds
        assert whole is not None
        own = self.seconds(name, (self.layers[name].layer.geometry,))
        if own is None:
            self._by_macs.add(name)
            own = whole * self._macs[name] / self._context.cost.macs
        found = {}
        for chain in chains:
            seconds = None if name in self._by_macs else self.seconds(name, chain)
            if seconds is None:
                self._by_macs.add(name)
                seconds = own * self.layers[name].macs(*chain) / max(self._macs[name], 1)
            found[chain] = seconds
        return found

    def times_in_float(self, name: str, chains: Collection[Chain]) -> dict[Chain, float]:
        """Seconds of those of some chains for a layer that could be timed in float32 within a network in INT8."""
        found = {chain: self.seconds(name, chain, in_float=True) for chain in chains}
        return {chain: seconds for chain, seconds in found.items() if seconds is not None}

    def align(self) -> int:
        """The number of channels of which widths should be a multiple.

        Time is a staircase over the number of channels, and a width between two steps saves no time. The width of a
        step is measured on the layer with the most MACs, made wider where it is narrow, as an SVD chain whose rank
        varies. The first layer has 3 inputs: made as wide, it would take many times as long as any other.
        """

        def fitness(name: str) -> tuple[bool, float]:
            layer = self.layers[name].layer.geometry
            return min(layer.inputs, layer.outputs) >= NARROW, self._macs[name]

        dense = [n for n, s in self.layers.items() if not s.grouped]
        if not dense:
            return default_align(self.runtime)
        name = max(dense, key=fitness)
        layer = self.layers[name].layer.geometry
        wide = layer.resized(*(max(n, 2 * STEPS[0]) for n in (layer.inputs, layer.outputs)))
        for step in STEPS:
            widths = _widths(step)
            chains = {w: DECOMPOSITIONS["svd"].links(wide, w) for w in widths}
            self.measure((name, chain) for chain in chains.values())
            seconds = {w: self.seconds(name, chain) for w, chain in chains.items()}
            ends = [(seconds[w], seconds[w - step // 2], w) for w in widths[1::2]]
            saved = [(a - b) / a / (step / 2 / w) for a, b, w in ends if a is not None and b is not None]
            if saved and np.mean(saved) < PAYS:
                return step
            if self._foreign and not any(seconds.values()):
                warnings.warn(
                    f"the latency table (of {self.table.machine}) does not tell which numbers of channels pay, so all "
                    f"multiples of {default_align(self.runtime)} are tried: make it again with this version, or give "
                    "`align`",
                    HmcWarning,
                    stacklevel=2,
                )
                break
        return default_align(self.runtime)

    def profile(self) -> LatencyProfile:
        """The times of the whole model, with the machine and batch size for which all times hold."""
        whole = self.table.entries[self._key]
        assert whole.seconds is not None
        return LatencyProfile(
            machine=self.table.machine,
            batch=self.batch,
            seconds=whole.seconds,
            uncertainty=whole.uncertainty,
            unchanged=self.table.entries[self._served_key].seconds if self._served_key != self._key else None,
            table=self.table.digest(),
            by_macs=sorted(self._by_macs),
        )


def default_align(runtime: Runtime) -> int:
    """The alignment for a provider, in channels, if it is not measured."""
    return TENSORRT_ALIGN if runtime.name in TENSORRT else DEFAULT_ALIGN


def _widths(step: int) -> list[int]:
    """The widths to time for a step: the ends of its second and third step, and half a step below each."""
    return [w for end in (2 * step, 3 * step) if end <= 2 * STEPS[0] for w in (end - step // 2, end)]
