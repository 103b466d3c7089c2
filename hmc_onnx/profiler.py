"""From a model and calibration data to a profile: candidates are made in closed form and measured on onnxruntime.

Two walks over the graph. The first streams the second moments of every layer's patches. From these every
candidate's weights follow: a decomposition amounts to another dense kernel for its layer, a pruned group to
zero columns in its consumers. So the second walk needs one session for each layer, on the part of the graph
behind it, into which the candidates' kernels are fed one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from calib.batching import calibration_chunks, input_shapes
from calib.data import CalibrationData
from calib.latency_table import LatencyTable
from calib.moments import sample_positions, sampled_patches
from calib.sensitivity import Change, sensitivities
from calib.walk import Walk
from hmc_onnx.candidates import (
    Candidate,
    Times,
    Variant,
    decompositions,
    layer_choices,
    removal,
    variants,
    whole_offers,
)
from hmc_onnx.elimination import Elimination
from hmc_onnx.latencies import DEFAULT_ALIGN, Chain, Clock, serving_batch
from hmc_onnx.parallel import run_tasks, workers
from hmc_onnx.profiles import GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.settings import Settings
from hmc_onnx.subjects import Subject, Subjects, find_subjects
from passes.channels import ChannelGroup
from passes.cost import Cost, costs
from passes.errors import ModelError
from passes.layers import write_layer
from passes.model import Model
from passes.progress import Progress, silent
from passes.shapes import infer_shapes

__all__ = ["profile"]


def profile(
    model: Model,
    data: CalibrationData,
    settings: Settings,
    progress: Progress = silent,
    served: onnx.ModelProto | None = None,
    table: LatencyTable | None = None,
) -> Profile:
    """Profile a normalised model.

    Args:
        model: normalised; not changed.
        data: calibration images as feeds of the model.
        settings: see `Settings`.
        progress: called as the work goes on.
        served: the model as it is served, whose latency is measured; default: as it is normalised.
        table: latencies of another machine, to plan for it.

    Raises:
        ModelError: the model has no layer that could be compressed.
        SettingsError: the latency table does not fit.
    """
    with workers():
        return _Profiler(model, data, settings, progress).profile(served or model.to_proto(), table)


class _Profiler:
    """One run: what all its steps share."""

    def __init__(self, model: Model, data: CalibrationData, settings: Settings, progress: Progress) -> None:
        self.data, self.settings, self.progress = data, settings, progress
        self.inputs = input_shapes(model.header, data)
        self.digest, self.costs = model.digest(), costs(model, self.inputs)
        self.model = model.copy()
        self.subjects = find_subjects(self.model, self.inputs)
        self.layers = self.subjects.layers
        if not any(node.op == "Conv" for node in model.graph.nodes):
            raise ModelError("the model has no Conv, so there is nothing to compress: give a convolutional network")
        if not self.layers:
            reasons = "; ".join(f"'{k}': {v}" for k, v in self.subjects.declined.items())
            raise ModelError(f"the model has nothing to compress ({reasons}): give a network of Convs")
        self.nodes = {n.name: n for n in self.model.graph.nodes}
        for name, subject in self.layers.items():  # own initializers, bias included, which can then be fed
            write_layer(self.model.graph, self.nodes[name], subject.layer.weight, subject.layer.bias)

    def profile(self, served: onnx.ModelProto, table: LatencyTable | None) -> Profile:
        settings, layers, subjects = self.settings, self.layers, self.subjects
        clock = self._clock(served, table) if settings.latency else None
        align = settings.align or (clock.align() if clock else DEFAULT_ALIGN)
        chunks = calibration_chunks(self.model, self.data, settings.samples, settings.chunk, settings.runtime)
        _measure_moments(Walk(self.model, chunks, settings.runtime), layers, settings, self.progress)

        tasks: list[Callable[[], Any]] = [removal(g, layers, align) for g in subjects.groups.values()]
        found = run_tasks("channels to spare", tasks, self.progress)
        eliminations: dict[str, Elimination] = dict(zip(subjects.groups, found, strict=True))
        times = self._times(clock, {n: [o.links for o in whole_offers(s, align)] for n, s in layers.items()})
        tasks = [partial(decompositions, s, align, times[n]) for n, s in layers.items()]
        found = run_tasks("decompositions", tasks, self.progress)
        plain: dict[str, list[Candidate]] = dict(zip(layers, found, strict=True))

        few = math.ceil(settings.kl_samples / len(next(iter(chunks[0].values()))))
        walk = Walk(self.model, chunks[:few], settings.runtime)
        changes = [*_group_changes(subjects, eliminations, self.nodes), *_layer_changes(layers, plain, self.nodes)]
        nats = sensitivities(walk, changes, self.progress)

        groups = {
            g.name: _group_profile(g, eliminations[g.name], nats, g.name in subjects.removable)
            for g in subjects.groups.values()
        }
        own = {n: self._variants(s, groups, plain[n], align) for n, s in layers.items()}
        times = self._times(clock, {n: [c for v in vs for c in v.chains] for n, vs in own.items()})
        tasks = [
            partial(
                layer_choices,
                s,
                plain[name],
                [nats["layer", name, c.offer.method, c.offer.rank] for c in plain[name]],
                own[name],
                _repaired(s, subjects, eliminations),
                times[name],
            )
            for name, s in layers.items()
        ]
        choices = dict(zip(layers, run_tasks("decompositions after pruning", tasks, self.progress), strict=True))
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

    def _clock(self, served: onnx.ModelProto, table: LatencyTable | None) -> Clock:
        batch = serving_batch(served, self.data.feeds, self.settings.batch)
        shapes = infer_shapes(self.model, self.inputs)
        clock = Clock(self.digest, self.layers, self.nodes, shapes, batch, self.settings.runtime, table)
        clock.time_whole(served, self.data)
        return clock

    def _times(self, clock: Clock | None, chains: Mapping[str, list[Chain]]) -> dict[str, Times]:
        """Seconds of each layer's chains and of the layer itself, measured where they are not known."""
        if clock is None:
            return dict.fromkeys(chains)
        every = {n: [(self.layers[n].layer.geometry,), *own] for n, own in chains.items()}
        clock.measure(((n, c) for n, own in every.items() for c in own), self.progress)
        return {n: clock.times(n, own) for n, own in every.items()}

    def _variants(
        self, subject: Subject, groups: dict[str, GroupProfile], plain: Sequence[Candidate], align: int
    ) -> list[Variant]:
        ends = [groups[n] if n is not None else None for n in (subject.input_group, subject.output_group)]
        return list(variants(subject, ends[0], ends[1], align, sorted({c.offer.method for c in plain})))

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


def _measure_moments(walk: Walk, layers: dict[str, Subject], settings: Settings, progress: Progress) -> None:
    rng = np.random.default_rng(settings.seed)
    for done, subject in enumerate(layers.values()):
        progress("second moments", done, len(layers))
        if subject.grouped:
            continue
        geometry = subject.layer.geometry
        walk.advance([subject.layer.input])
        positions = sample_positions(geometry, subject.size, settings.positions, rng)
        for x in walk.values(subject.layer.input):
            subject.moments.update(sampled_patches(x, geometry, positions))
        if not np.isfinite(subject.moments.second).all():
            raise ModelError(
                f"layer '{subject.layer.name}' reads NaN or infinity on the calibration images: "
                "check the weights of the layers before it, and that the images are preprocessed as for training"
            )
    progress("second moments", len(layers), len(layers))


def _group_changes(
    subjects: Subjects, eliminations: dict[str, Elimination], nodes: dict[str, gs.Node]
) -> Iterable[Change]:
    for name, group in subjects.groups.items():
        consumers = [subjects.layers[s.node.name] for s, _ in group.members("consumes")]
        options = {
            ("group", name, m): partial(_feeds, nodes, consumers, weights)
            for m, weights in eliminations[name].weights.items()
        }
        if name in subjects.removable and consumers[0].ends_branch:
            options["group", name, group.size] = partial(_branch_feeds, nodes, consumers[0])
        yield _change(consumers, options, nodes)


def _layer_changes(
    layers: dict[str, Subject], plain: dict[str, list[Candidate]], nodes: dict[str, gs.Node]
) -> Iterable[Change]:
    for name, subject in layers.items():
        options = {
            ("layer", name, c.offer.method, c.offer.rank): partial(_candidate_feeds, nodes, subject, c)
            for c in plain[name]
        }
        yield _change([subject], options, nodes)


def _change(
    changed: Sequence[Subject], options: Mapping[Any, Callable[[], dict[str, np.ndarray]]], nodes: dict[str, gs.Node]
) -> Change:
    first = min(changed, key=lambda s: s.position)
    initializers = tuple(t.name for s in changed for t in nodes[s.layer.name].inputs[1:3])
    return Change(first.layer.input, first.position, initializers, options)


def _candidate_feeds(nodes: dict[str, gs.Node], subject: Subject, candidate: Candidate) -> dict[str, np.ndarray]:
    return _feeds(nodes, [subject], [candidate.kernel])


def _branch_feeds(nodes: dict[str, gs.Node], end: Subject) -> dict[str, np.ndarray]:
    """A residual branch that gives its mean only: the layers behind it are solved again, and bring that."""
    return _feeds(nodes, [end], [np.zeros(end.layer.geometry.weight_shape)])


def _feeds(
    nodes: dict[str, gs.Node], changed: Sequence[Subject], kernels: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Kernels, and the biases that keep the mean responses, as values of the layers' initializers."""
    feeds = {}
    for subject, kernel in zip(changed, kernels, strict=True):
        layer, node = subject.layer, nodes[subject.layer.name]
        shift = (layer.weight - kernel).reshape(len(kernel), -1) @ subject.moments.mean
        weight, bias = node.inputs[1:3]
        if node.op == "Gemm" and not node.attrs.get("transB", 0):
            kernel = kernel.T
        feeds[weight.name] = np.ascontiguousarray(kernel, dtype=weight.dtype)
        feeds[bias.name] = (layer.bias + shift).astype(bias.dtype)
    return feeds


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


def _repaired(subject: Subject, subjects: Subjects, eliminations: dict[str, Elimination]) -> dict[int, np.ndarray]:
    """A consumer's weight, solved again, for each choice of its input group but the first."""
    if subject.input_group is None or subject.grouped:
        return {}
    names = [s.node.name for s, _ in subjects.groups[subject.input_group].members("consumes")]
    place, weights = names.index(subject.layer.name), eliminations[subject.input_group].weights
    return {choice: weights[m][place] for choice, m in enumerate(sorted(weights), start=1)}
