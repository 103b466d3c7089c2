"""From a model and calibration data to a profile: candidates are made in closed form and measured on onnxruntime.

Two walks over the graph. The first streams the second moments of every layer's patches. From these every
candidate's weights follow: a decomposition amounts to another dense kernel for its layer, a pruned group to
zero columns in its consumers. So the second walk needs one session for each layer, on the part of the graph
behind it, into which the candidates' kernels are fed one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx

from calib.data.calibration import CalibrationData
from calib.measure.latency_table import LatencyTable
from calib.measure.moments import Moments, sample_positions, sampled_patches
from calib.measure.sensitivity import Bench, Change, cut, forget, measure, windows
from calib.measure.walk import Walk
from calib.runtime.batching import calibration_chunks, input_shapes
from calib.runtime.sessions import Runtime, providers
from hmc_onnx.analysis.model_inputs import check_evaluation_mode
from hmc_onnx.analysis.subjects import Subject, Subjects, find_subjects
from hmc_onnx.execution.checkpoint import Journal
from hmc_onnx.execution.executor import HERE, Pool, Task, Work, pool
from hmc_onnx.profiling.candidate_times import Chain, Clock, default_align, serving_batch
from hmc_onnx.records.profile import GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.settings import Settings
from hmc_onnx.search_space.candidates import (
    Candidate,
    Times,
    Variant,
    decompositions,
    layer_choices,
    removal,
    variants,
    whole_offers,
)
from hmc_onnx.search_space.elimination import Elimination
from hmc_onnx.search_space.weight_changes import group_changes, layer_changes
from passes.channels import ChannelGroup
from passes.core.errors import ModelError
from passes.core.progress import Progress, silent
from passes.core.shelf import MEMORY, Kept, Shelf
from passes.graph.cost import Cost, costs
from passes.graph.external import LARGE
from passes.graph.layers import own_values
from passes.graph.model import Model, digest
from passes.graph.protos import byte_size
from passes.graph.shapes import infer_shapes

__all__ = ["identity", "profile"]

# Images that sensitivity is measured on, for a network of so many MACs and fewer, and for the largest.
MOST_IMAGES, IMAGE_MACS, LEAST_IMAGES = 256, 5e8, 32
# Into how many lots they are cut: candidates that are out, or known, run on the first ones only.
KL_CHUNKS = 4
# With which an option must be known to be out, to be measured on the first images only.
CONFIDENCE = 0.95
# Options that one task measures: their kernels are sent with it.
MOST_OPTIONS = 32


def profile(
    model: Model,
    data: CalibrationData,
    settings: Settings,
    progress: Progress = silent,
    served: onnx.ModelProto | None = None,
    table: LatencyTable | None = None,
    work: Work = HERE,
) -> Profile:
    """Profile a normalised model.

    Args:
        model: normalised; not changed.
        data: calibration images as feeds of the model.
        settings: see `Settings`.
        progress: called as the work goes on.
        served: the model as it is served, whose latency is measured; default: as it is normalised.
        table: latencies of another machine, to plan for it.
        work: where the work is done.

    Raises:
        ModelError: the model has no layer that could be compressed.
        SettingsError: the latency table does not fit.
    """
    profiler = _Profiler(model, data, settings)
    with pool(work, profiler.journal(work, table), progress) as workers:
        return profiler.profile(served or model.to_proto(), table, workers)


class _Profiler:
    """One run: what all its steps share."""

    def __init__(self, model: Model, data: CalibrationData, settings: Settings) -> None:
        check_evaluation_mode(model)
        self.data, self.settings = data, settings
        self.inputs = input_shapes(model.header, data)
        proto = model.to_proto()
        self.digest, self.large = digest(proto), byte_size(proto) > LARGE
        del proto
        self.costs = costs(model, self.inputs)
        self.model = model.copy()
        self.subjects = find_subjects(self.model, self.inputs)
        if not (settings.latency if settings.branches is None else settings.branches):
            self.subjects = replace(self.subjects, removable=set())
        self.layers = self.subjects.layers
        if not any(node.op == "Conv" for node in model.graph.nodes):
            raise ModelError("the model has no Conv, so there is nothing to compress: give a convolutional network")
        if not self.layers:
            reasons = "; ".join(f"'{k}': {v}" for k, v in self.subjects.declined.items())
            raise ModelError(f"the model has nothing to compress ({reasons}): give a network of Convs")
        self.nodes = {n.name: n for n in self.model.graph.nodes}
        for name, subject in self.layers.items():  # own initializers, bias included, which can then be fed
            own_values(self.model.graph, self.nodes[name], subject.layer)

    def journal(self, work: Work, table: LatencyTable | None) -> Journal:
        """The journal of the run."""
        return Journal(work.folder, identity(self.digest, self.data, self.settings, table))

    def profile(self, served: onnx.ModelProto, table: LatencyTable | None, workers: Pool) -> Profile:
        """Measure, in workers."""
        settings, layers, subjects = self.settings, self.layers, self.subjects
        self.shelf = workers.shelf() if self.large else MEMORY
        clock = self._clock(served, table, workers) if settings.latency else None
        align = settings.align or (clock.align() if clock else default_align(settings.runtime))
        chunks = calibration_chunks(self.model, self.data, settings.samples, settings.chunk, settings.runtime)
        memory = int(workers.work.memory * 1e9)
        _measure_moments(Walk(self.model, chunks, settings.runtime, memory), layers, settings, workers, self.shelf)

        tasks: dict[str, Task] = {
            n: partial(removal, g, layers, align, settings.fine, self.shelf) for n, g in subjects.groups.items()
        }
        eliminations: dict[str, Elimination] = workers.run("channels to spare", tasks)
        offered = {n: whole_offers(s, align, settings.fine) for n, s in layers.items()}
        times = self._times(clock, {n: [o.links for o in own] for n, own in offered.items()}, workers)
        tasks = {n: partial(_task, decompositions, s, offered[n], times[n], self.shelf) for n, s in layers.items()}
        plain: dict[str, list[Candidate]] = workers.run("decompositions", tasks)
        nats = self._sensitivities(eliminations, plain, workers)

        groups = {
            g.name: _group_profile(g, eliminations[g.name], nats, g.name in subjects.removable)
            for g in subjects.groups.values()
        }
        own = {n: self._variants(s, groups, plain[n], align) for n, s in layers.items()}
        times = self._times(clock, {n: [c for v in vs for c in v.chains] for n, vs in own.items()}, workers)
        tasks = {
            name: partial(
                _task,
                layer_choices,
                s,
                plain[name],
                [nats["layer", name, c.offer.method, c.offer.rank] for c in plain[name]],
                own[name],
                _repaired(s, subjects, eliminations),
                times[name],
            )
            for name, s in layers.items()
        }
        choices = workers.run("decompositions after pruning", tasks)
        cost = sum(self.costs.values(), Cost())
        return Profile(
            model=self.digest,
            data=self.data.digest(),
            settings=settings,
            align=align,
            macs=cost.macs,
            parameters=cost.parameters,
            latency=clock.profile() if clock else None,
            groups=list(groups.values()),
            layers=[self._layer_profile(n, c) for n, c in choices.items()],
            declined=subjects.declined,
        )

    def _sensitivities(
        self, eliminations: dict[str, Elimination], plain: dict[str, list[Candidate]], workers: Pool
    ) -> dict[Hashable, float]:
        """Nats of each candidate: each worker walks the graph once, over a few of the images."""
        settings, provider = self.settings, providers(self.settings.provider)[0]
        changes = [
            *group_changes(self.subjects, eliminations, self.nodes),
            *layer_changes(self.layers, plain, self.nodes),
        ]
        macs = sum(self.costs.values(), Cost()).macs
        images = settings.kl_samples or int(
            min(max(MOST_IMAGES * IMAGE_MACS / max(macs, 1), LEAST_IMAGES), MOST_IMAGES)
        )
        chunk = min(settings.chunk, math.ceil(images / KL_CHUNKS))
        proto = self.model.to_proto()
        # a device is one, and workers would share it; of a large model each would hold what its sessions hold
        here = provider != "CPUExecutionProvider" or self.large
        windowed = list(windows(changes, len(self.model.graph.nodes), MOST_OPTIONS))
        bench = Bench(
            key=f"{self.digest} {self.data.digest()} {settings.model_dump_json()}",
            model=proto,
            cuts=[cut(w) for w in windowed],
            chunks=calibration_chunks(self.model, self.data, images, chunk, settings.runtime),
            runtime=settings.runtime if here else Runtime(settings.provider, 1),
            confidence=None if settings.exhaustive else CONFIDENCE,
            memory=int(workers.work.memory * 1e9 / (1 if here else workers.workers)),
        )
        shared = workers.share("bench", bench, here)
        tasks: dict[str, Task] = {
            str(i): partial(_measuring, shared, bench.key, i, w, here) for i, w in enumerate(windowed)
        }
        steps = {str(i): sum(len(c.options) for c in w) for i, w in enumerate(windowed)}
        found = workers.run("sensitivity", tasks, steps, here)
        forget()
        workers.renew()  # sessions and activations are let go of before the largest layers are decomposed
        return {key: value for window in found.values() for key, value in window.items()}

    def _clock(self, served: onnx.ModelProto, table: LatencyTable | None, workers: Pool) -> Clock:
        batch = serving_batch(served, self.data.feeds, self.settings.batch)
        shapes = infer_shapes(self.model, self.inputs)
        folder = workers.journal.folder
        clock = Clock(self.digest, self.layers, self.model.graph, shapes, batch, self.settings.runtime, table, folder)
        clock.time_whole(served, self.data)
        return clock

    def _times(self, clock: Clock | None, chains: Mapping[str, list[Chain]], workers: Pool) -> dict[str, Times]:
        """Seconds of each layer's chains and of the layer itself, measured where they are not known."""
        if clock is None:
            return dict.fromkeys(chains)
        every = {n: [(self.layers[n].layer.geometry,), *own] for n, own in chains.items()}
        clock.measure(((n, c) for n, own in every.items() for c in own), workers.progress)
        return {n: clock.times(n, own) for n, own in every.items()}

    def _variants(
        self, subject: Subject, groups: dict[str, GroupProfile], plain: Sequence[Candidate], align: int
    ) -> list[Variant]:
        ends = [groups[n] if n is not None else None for n in (subject.input_group, subject.output_group)]
        methods = sorted({c.offer.method for c in plain})
        return list(variants(subject, ends[0], ends[1], align, methods, self.settings.fine))

    def _layer_profile(self, name: str, choices: list[LayerChoice]) -> LayerProfile:
        subject = self.layers[name]
        return LayerProfile(
            name=name,
            input_group=subject.input_group,
            output_group=subject.output_group,
            macs=subject.layer.geometry.macs(subject.size),
            parameters=self.costs[name].parameters,  # without the bias that the layer may be given
            seconds=choices[0].seconds,
            choices=choices,
        )


def identity(model: str, data: CalibrationData, settings: Settings, table: LatencyTable | None) -> dict[str, str]:
    """What a journal is of."""
    return {
        "version": version("hmc-onnx"),
        "model": model,
        "data": data.digest(),
        "settings": settings.model_dump_json(),
        "latency table": table.digest() if table else "",
    }


def _task(*call: Any) -> tuple[Any, ...]:
    return call


def _measuring(
    shared: Callable[[], Bench], key: str, number: int, window: Sequence[Change], here: bool
) -> tuple[Any, ...]:
    """A task; where nothing has to be sent away, values are made one by one, as each is tried."""
    return measure, shared, key, number, window if here else [change.made() for change in window]


def _measure_moments(walk: Walk, layers: dict[str, Subject], settings: Settings, workers: Pool, shelf: Shelf) -> None:
    rng = np.random.default_rng(settings.seed)
    for done, (name, subject) in enumerate(layers.items()):
        workers.progress("second moments", done, len(layers))
        if subject.grouped:
            continue
        geometry = subject.layer.geometry
        positions = sample_positions(geometry, subject.size, settings.positions, rng)
        if f"second moments/{name}" in workers.journal:
            subject.moments = workers.journal.load(f"second moments/{name}")
            continue
        walk.advance([subject.layer.input])
        moments = Moments()
        for x in walk.values(subject.layer.input):
            moments.update(sampled_patches(x, geometry, positions))
        subject.moments = moments.centred(shelf)
        if not np.isfinite(subject.moments.second.array).all():
            raise ModelError(
                f"layer '{subject.layer.name}' reads NaN or infinity on the calibration images: "
                "check the weights of the layers before it, and that the images are preprocessed as for training"
            )
        workers.journal.save(f"second moments/{name}", subject.moments)
    workers.progress("second moments", len(layers), len(layers))


def _group_profile(
    group: ChannelGroup, elimination: Elimination, nats: dict[Hashable, float], removable: bool
) -> GroupProfile:
    choices = [GroupChoice(keep=group.size, removed=[], sensitivity=0.0)]
    for m in sorted(elimination.weights):
        removed = sorted(int(c) for c in elimination.order[:m])
        choices.append(GroupChoice(keep=group.size - m, removed=removed, sensitivity=nats["group", group.name, m]))
    if removable:
        loss = nats.get(("group", group.name, group.size), 0.0)  # of a group further in: nothing on top
        choices.append(GroupChoice(keep=0, removed=list(range(group.size)), sensitivity=loss))
    return GroupProfile(
        name=group.name,
        size=group.size,
        producers=[s.node.name for s, _ in group.members("produces")],
        consumers=[s.node.name for s, _ in group.members("consumes")],
        choices=choices,
    )


def _repaired(subject: Subject, subjects: Subjects, eliminations: dict[str, Elimination]) -> dict[int, Kept]:
    """A consumer's weight, solved again, for each choice of its input group but the first."""
    if subject.input_group is None or subject.grouped:
        return {}
    names = [s.node.name for s, _ in subjects.groups[subject.input_group].members("consumes")]
    place, weights = names.index(subject.layer.name), eliminations[subject.input_group].weights
    return {choice: weights[m][place] for choice, m in enumerate(sorted(weights), start=1)}
