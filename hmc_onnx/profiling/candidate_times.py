"""The time of a model, of its layers, and of what they may become: probes looked up in a latency table, or measured.

A chain's time is that of its probe: the links, with what follows the layer. A chain that cannot be timed alone is taken
for as many times faster than its layer as its MACs are fewer, and of a layer that cannot be, its share of the model's
time for its share of the MACs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from calib.data.calibration import CalibrationData
from calib.measure.latency import DISTURBED, interleaved
from calib.measure.latency_table import Entry, LatencyTable, cached_table, read_table, this_machine
from calib.runtime.batching import declared_batch
from calib.runtime.observing import observe
from calib.runtime.sessions import Runtime, Session
from hmc_onnx.analysis.model_inputs import signature
from hmc_onnx.analysis.subjects import Subject, find_subjects
from hmc_onnx.records.profile import GroupChoice, GroupProfile, LatencyProfile
from hmc_onnx.records.settings import Settings
from hmc_onnx.search_space.candidates import variants, whole_offers
from hmc_onnx.search_space.pruning_steps import steps
from passes.channels import ChannelGroup
from passes.core.errors import OutputError, SettingsError
from passes.core.progress import Progress, silent
from passes.decompose import DECOMPOSITIONS, chain_macs
from passes.graph.layers import Geometry
from passes.graph.model import element_type
from passes.graph.shapes import Shapes
from passes.normal_form.normalise import normalise
from passes.probe import Probe, epilogue

__all__ = ["Chain", "Clock", "default_align", "measure_table", "serving_batch", "serving_feeds"]

Chain = tuple[Geometry, ...]

# Channels that ranks and counts are multiples of where nothing is measured; TensorRT handles 8 together in float16.
DEFAULT_ALIGN, TENSORRT_ALIGN = 4, 8
STEPS = (64, 32, 16, 8, 4, 2)
# Half a step narrower saves less than this share of what it would if time went with width: it does not pay.
PAYS = 0.5


class Clock:
    """Times for one model on one machine.

    Args:
        key: digest of the model.
        subjects: its layers by name, and
        graph: that they are in.
        shapes: of its tensors.
        batch: images a run.
        runtime: as it is served.
        table: times of another machine, to plan for it; None: this machine's from the cache, which is added to.
        folder: of the run's journal, where the table is kept, too: later runs may change the one in the cache.

    Raises:
        SettingsError: the provider does not work here.
    """

    def __init__(
        self,
        key: str,
        subjects: Mapping[str, Subject],
        graph: gs.Graph,
        shapes: Shapes,
        batch: int,
        runtime: Runtime,
        table: LatencyTable | None = None,
        folder: Path | None = None,
    ) -> None:
        self._key = f"model {key} × {batch}"
        self.subjects, self.batch, self.runtime = subjects, batch, runtime
        self._foreign = table is not None
        self._paths: list[Path] = []
        self._settled = self._foreign  # what the whole model takes is not to be measured again
        if table is None:
            table, path = cached_table(this_machine(runtime))
            self._paths = [path] if folder is None else [path, folder / "latency.json"]
            if folder is not None and self._paths[1].exists():
                own = read_table(self._paths[1])
                self._settled = own.machine == table.machine
                table = own if self._settled else table
        self.table = table
        self._kinds = {
            n.name: (element_type(n.inputs[1]).name, epilogue(graph, n, shapes))
            for n in graph.nodes
            if n.name in subjects
        }
        self._macs = {n: s.layer.geometry.macs(s.size) for n, s in subjects.items()}
        self._by_macs: set[str] = set()

    def time_whole(self, proto: onnx.ModelProto, data: CalibrationData) -> Entry:
        """The time of a run of the whole model; one from the cache is mended, as the machine may have been busy.

        Raises:
            SettingsError: the table of another machine has none.
        """
        entry = self.table.entries.get(self._key)
        if self._foreign and (entry is None or not entry.usable):
            raise SettingsError(
                f"the latency table (of {self.table.machine}) has no time of this model at batch {self.batch}: make it "
                f"there with 'hmc-onnx latency measure MODEL --batch {self.batch}'"
            )
        if entry is not None and self._settled:
            return entry
        time = interleaved([Session(proto, self.runtime)], serving_feeds(data, self.batch)).latency(0)
        if entry is None or entry.seconds is None or entry.seconds > DISTURBED * time.value:
            entry = Entry(seconds=time.value, uncertainty=time.uncertainty)
            self.table.entries[self._key] = entry
            self.keep()
        return entry

    def probe(self, name: str, chain: Chain) -> Probe:
        """A layer's chain as a probe."""
        dtype, follows = self._kinds[name]
        return Probe(chain, self.subjects[name].size, self.batch, dtype, follows)

    def measure(self, chains: Iterable[tuple[str, Chain]], progress: Progress = silent) -> None:
        """Time the chains of layers that the table lacks, and keep the table."""
        if self._foreign:
            return
        self.table.measure((self.probe(name, chain) for name, chain in chains), self.runtime, progress, self.keep)

    def keep(self) -> None:
        """Write the table to the cache and the journal, where that can be."""
        for path in list(self._paths):
            try:
                self.table.write(path)
            except OutputError:
                self._paths.remove(path)  # it can be measured again

    def times(self, name: str, chains: Collection[Chain]) -> dict[Chain, float]:
        """Seconds of a layer's chains, the layer itself being one."""
        whole = self.table.entries[self._key].seconds
        assert whole is not None
        own = self.table.seconds(self.probe(name, (self.subjects[name].layer.geometry,)))
        if own is None:
            self._by_macs.add(name)
            own = whole * self._macs[name] / sum(self._macs.values())
        found = {}
        for chain in chains:
            seconds = None if name in self._by_macs else self.table.seconds(self.probe(name, chain))
            if seconds is None:
                self._by_macs.add(name)
                seconds = own * chain_macs(chain, self.subjects[name].size) / max(self._macs[name], 1)
            found[chain] = seconds
        return found

    def align(self) -> int:
        """The step of the staircase that time is over width: ranks and numbers of channels between steps do not pay.

        It is looked for in a chain from many channels over a few to many, of the layer with most MACs.
        """
        dense = [n for n, s in self.subjects.items() if not s.grouped]
        if not dense:
            return default_align(self.runtime)
        name = max(dense, key=self._macs.__getitem__)
        layer = self.subjects[name].layer.geometry
        wide = layer.resized(*(max(n, 2 * STEPS[0]) for n in (layer.inputs, layer.outputs)))
        chains = {w: DECOMPOSITIONS["svd"].links(wide, w) for step in STEPS for w in _widths(step)}
        self.measure((name, chain) for chain in chains.values())
        seconds = {w: self.table.seconds(self.probe(name, chain)) for w, chain in chains.items()}
        for step in STEPS:
            ends = [(seconds[w], seconds[w - step // 2], w) for w in _widths(step)[1::2]]
            saved = [(a - b) / a / (step / 2 / w) for a, b, w in ends if a is not None and b is not None]
            if saved and np.mean(saved) < PAYS:
                return step
        return default_align(self.runtime)

    def profile(self) -> LatencyProfile:
        """What the times are of."""
        whole = self.table.entries[self._key]
        assert whole.seconds is not None
        return LatencyProfile(
            machine=self.table.machine,
            batch=self.batch,
            seconds=whole.seconds,
            uncertainty=whole.uncertainty,
            table=self.table.digest(),
            by_macs=sorted(self._by_macs),
        )


def default_align(runtime: Runtime) -> int:
    """The alignment where none is measured."""
    return TENSORRT_ALIGN if runtime.provider == "tensorrt" else DEFAULT_ALIGN


def measure_table(
    proto: onnx.ModelProto,
    inputs: Mapping[str, tuple[int, ...]],
    settings: Settings,
    progress: Progress = silent,
) -> LatencyTable:
    """The times of a model, of its layers, and of all that they may become: it takes no calibration data.

    Args:
        proto: the model, as it is served.
        inputs: shapes of the inputs.
        settings: its batch, provider, threads, alignment and fineness are those of the profiles to come.
        progress: called as the work goes on.

    Raises:
        ModelError, SettingsError: see their docstrings.
    """
    rng = np.random.default_rng(0)
    types = {name: dtype for name, (dtype, _) in signature(proto).items()}
    data = CalibrationData({n: rng.random(s).astype(types[n]) for n, s in inputs.items()}, None, "noise")
    model = observe(normalise(proto), dict(inputs), settings.runtime)
    subjects, shapes = find_subjects(model, inputs), model.shapes_at(inputs)
    batch = serving_batch(proto, inputs, settings.batch)
    clock = Clock(model.digest(), subjects.layers, model.graph, shapes, batch, settings.runtime)
    clock.time_whole(proto, data)
    align = settings.align or clock.align()
    groups = {n: _any_removal(g, align, settings.fine, n in subjects.removable) for n, g in subjects.groups.items()}
    chains: list[tuple[str, Chain]] = []
    for name, subject in subjects.layers.items():
        ends = [groups[n] if n is not None else None for n in (subject.input_group, subject.output_group)]
        found = list(variants(subject, ends[0], ends[1], align, list(DECOMPOSITIONS), settings.fine))
        chains += [(name, (subject.layer.geometry,))]
        chains += [(name, o.links) for o in whole_offers(subject, align, settings.fine)]
        chains += [(name, chain) for variant in found for chain in variant.chains]
    clock.measure(chains, progress)
    return clock.table


def _any_removal(group: ChannelGroup, align: int, fine: bool, removable: bool) -> GroupProfile:
    """A group's profile as to how many channels go, and not which."""
    on_offer = steps(group, align, fine)
    gone = [[], *map(on_offer.any, range(len(on_offer.keeps))), *([list(range(group.size))] if removable else [])]
    choices = [GroupChoice(keep=group.size - len(some), removed=some, sensitivity=0.0) for some in gone]
    return GroupProfile(name=group.name, size=group.size, producers=[], consumers=[], choices=choices)


def _widths(step: int) -> list[int]:
    """Widths at which a step would show: half a step below an end, and the end, of the second step and the third."""
    return [w for end in (2 * step, 3 * step) if end <= 2 * STEPS[0] for w in (end - step // 2, end)]


def serving_batch(proto: onnx.ModelProto, fed: Collection[str], wanted: int | None) -> int:
    """Images a run when serving: those that are wanted, or what the model declares, or 1.

    Raises:
        SettingsError: the model declares another number.
    """
    declared = declared_batch(proto, fed)
    if declared and wanted and declared != wanted:
        raise SettingsError(f"--batch {wanted}: the model takes batches of {declared}: leave the option out")
    return wanted or declared or 1


def serving_feeds(data: CalibrationData, batch: int) -> dict[str, np.ndarray]:
    """One run's feeds of a number of images, repeated where the data have fewer."""
    return {name: np.resize(array[:batch], (batch, *array.shape[1:])) for name, array in data.feeds.items()}
