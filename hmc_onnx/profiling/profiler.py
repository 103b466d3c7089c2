"""The profiling stage: computes the candidates of a model in closed form, and measures them on onnxruntime.

It walks over the graph twice. The first walk streams the second moments of every layer's patches, from which the
weights of all candidates are computed. A decomposition is equivalent to another dense kernel for its layer, and a
pruned group to zero columns in the layers that read it. So the second walk, which measures sensitivities, needs only
one session for each place in the graph: on the part behind it, with the candidates' kernels as inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np

from calib.measure.lanes import in_lanes
from calib.measure.moments import Centred, JointMoments, Moments, sample_positions, sampled_patches
from calib.measure.sensitivity import Bench, Change, cut, forget, measure, windows
from calib.measure.walk import Walk
from calib.runtime.batching import calibration_chunks
from hmc_onnx.analysis.compressible import Compressible, CompressibleLayer, Use, readers
from hmc_onnx.analysis.model_inputs import check_evaluation_mode
from hmc_onnx.execution.context import Context
from hmc_onnx.execution.executor import Pool, Task, pool
from hmc_onnx.profiling.candidate_times import Chain, Clock, default_align
from hmc_onnx.profiling.int8_choices import in_int8
from hmc_onnx.records.profile import GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.search_space.candidates import Candidate, Times, decompositions, whole_offers
from hmc_onnx.search_space.elimination import Elimination
from hmc_onnx.search_space.layer_choices import layer_choices
from hmc_onnx.search_space.variants import Variant, removal, variants
from hmc_onnx.search_space.weight_changes import group_changes, layer_changes
from passes.channels import ChannelGroup
from passes.core.errors import ModelError
from passes.core.shelf import MEMORY, Kept
from passes.graph.layers import Geometry, own_values

__all__ = ["profile", "sensitivity_images"]

# Sensitivity is measured on MOST_IMAGES images for a network of up to IMAGE_MACS MACs; for a larger one on fewer, in
# proportion, but not less than LEAST_IMAGES.
MOST_IMAGES, IMAGE_MACS, LEAST_IMAGES = 64, 2e9, 32
# These images are divided into at least so many chunks, so that early stopping can leave out the later ones.
KL_CHUNKS = 4
# Confidence at which a dominated candidate is dropped early (successive halving).
CONFIDENCE = 0.95
# Upper bound on the options that one task measures, because their kernels are sent with the task.
MOST_OPTIONS = 32


def profile(context: Context, clock: Clock | None = None) -> Profile:
    """Profile the model of a run.

    Args:
        context: the run.
        clock: its times, if latency is measured; default: a new one.

    Raises:
        ModelError: the model has no layer that could be compressed.
        SettingsError: the latency table does not fit.
    """
    profiler = _Profiler(context, clock)
    with pool(context.work, context.checkpoint) as workers:
        return profiler.profile(workers)


class _Profiler:
    """One run of the profiling stage, and the state that its steps share."""

    def __init__(self, context: Context, clock: Clock | None) -> None:
        self.clock = (clock or Clock(context)) if context.settings.latency else None
        check_evaluation_mode(context.normal)
        self.context, self.settings = context, context.settings
        self.model = context.normal.copy()
        own = {name: replace(subject, moments=Centred()) for name, subject in context.compressible.layers.items()}
        self.compressible = replace(context.compressible, layers=own)
        self.layers = self.compressible.layers
        if not any(node.op == "Conv" for node in self.model.graph.nodes):
            raise ModelError("the model has no Conv, so there is nothing to compress: give a convolutional network")
        if not self.layers:
            reasons = "; ".join(f"'{k}': {v}" for k, v in self.compressible.declined.items())
            raise ModelError(f"the model has nothing to compress ({reasons}): give a network of Convs")
        self.nodes = {n.name: n for n in self.model.graph.nodes}
        for name, subject in self.layers.items():  # gives each layer weights and biases of its own, which can be fed
            also = [(self.nodes[use.name], subject.biases[use.bias]) for use in subject.further]
            own_values(self.model.graph, self.nodes[name], subject.layer, also)

    def profile(self, workers: Pool) -> Profile:
        """Compute and measure all candidates; the tasks run in the workers of the pool."""
        context, settings, layers, compressible = self.context, self.settings, self.layers, self.compressible
        self.shelf = workers.shelf() if context.shelved else MEMORY
        clock = self.clock
        if clock is not None:
            clock.time_whole()
        align = settings.align or (clock.align() if clock else default_align(settings.runtime))
        self._measure_moments(workers)

        tasks: dict[str, Task] = {
            n: partial(removal, g, layers, align, settings.fine, self.shelf) for n, g in compressible.groups.items()
        }
        work = {n: _work(s) for n, s in layers.items()}
        of_groups = {n: sum(work[s.layer.name] for s, _ in readers(g, layers)) for n, g in compressible.groups.items()}
        eliminations: dict[str, Elimination] = workers.run("channels to spare", tasks, costs=of_groups)
        offered = {n: whole_offers(s, align, settings.fine) for n, s in layers.items()}
        times = self._times(clock, {n: [o.links for o in own] for n, own in offered.items()})
        tasks = {n: partial(_task, decompositions, s, offered[n], times[n], self.shelf) for n, s in layers.items()}
        plain: dict[str, list[Candidate]] = workers.run("decompositions", tasks, costs=work)
        nats = self._sensitivities(eliminations, plain, workers)

        groups = {
            g.name: _group_profile(g, layers, eliminations[g.name], nats, g.name in compressible.removable)
            for g in compressible.groups.values()
        }
        own = {n: self._variants(s, groups, plain[n], align) for n, s in layers.items()}
        times = self._times(clock, {n: [c for v in vs for c in v.chains] for n, vs in own.items()})
        tasks = {
            name: partial(
                _task,
                layer_choices,
                s,
                plain[name],
                [nats["layer", name, c.offer.method, c.offer.rank] for c in plain[name]],
                own[name],
                _repaired(s, compressible, eliminations),
                times[name],
            )
            for name, s in layers.items()
        }
        choices: Mapping[str, list[LayerChoice]] = workers.run("decompositions after pruning", tasks, costs=work)
        if context.weight_levels:
            choices = in_int8(context, clock, layers, own, choices)
        return Profile(
            model=context.digest,
            data=context.data.digest(),
            settings=settings,
            align=align,
            macs=context.cost.macs,
            parameters=context.cost.parameters,
            latency=clock.profile() if clock else None,
            groups=list(groups.values()),
            layers=[self._layer_profile(n, c) for n, c in choices.items()],
            declined=compressible.declined,
        )

    def _measure_moments(self, workers: Pool) -> None:
        """Walk over the graph, and accumulate the second moments of each layer's input patches, over all its uses."""
        context, settings, layers, checkpoint = self.context, self.settings, self.layers, workers.checkpoint
        walk = Walk(self.model, context.chunks, settings.runtime, context.memory)
        rng = np.random.default_rng(settings.seed)
        uses = sorted(
            ((use, name, subject) for name, subject in layers.items() for use in subject.uses),
            key=lambda each: each[0].position,
        )
        sums: dict[str, JointMoments] = {}  # of layers of which some uses are still to come
        for done, (use, name, subject) in enumerate(uses):
            workers.progress("second moments", done, len(uses))
            if subject.grouped:
                continue
            geometry = subject.layer.geometry
            positions = sample_positions(geometry, use.size, settings.positions, rng)
            if f"second moments/{name}" in checkpoint:
                subject.moments = checkpoint.load(f"second moments/{name}")
                continue
            walk.advance([use.input])
            summed = partial(_summed, walk, use, geometry, positions)
            moments = sums.pop(name, None) or JointMoments(len(subject.biases))
            moments.parts[use.bias] = reduce(
                Moments.joined, in_lanes(summed, geometry.features), moments.parts[use.bias]
            )
            if use != subject.uses[-1]:  # the others are still to come
                sums[name] = moments
                continue
            subject.moments = moments.centred(self.shelf)
            if not np.isfinite(subject.moments.second.array).all():
                raise ModelError(
                    f"layer '{subject.layer.name}' reads NaN or infinity on the calibration images: "
                    "check the weights of the layers before it, and that the images are preprocessed as for training"
                )
            checkpoint.save(f"second moments/{name}", subject.moments)
        workers.progress("second moments", len(uses), len(uses))

    def _sensitivities(
        self, eliminations: dict[str, Elimination], plain: dict[str, list[Candidate]], workers: Pool
    ) -> dict[Hashable, float]:
        """The sensitivity of each candidate, in nats; each worker walks the graph once, over some of the images."""
        settings = self.settings
        changes = [
            *group_changes(self.compressible, eliminations, self.nodes),
            *layer_changes(self.layers, plain, self.nodes),
        ]
        context = self.context
        images = sensitivity_images(context)
        chunk = min(settings.chunk, math.ceil(images / KL_CHUNKS))
        proto = self.model.to_proto()
        # There is one GPU, which workers would have to share; and of a large model, each worker's sessions would hold a
        # copy of the weights.
        here = not settings.runtime.on_cpu or context.large
        windowed = list(windows(changes, len(self.model.graph.nodes), MOST_OPTIONS))
        bench = Bench(
            key=f"{context.digest} {context.data.digest()} {settings.model_dump_json()}",
            model=proto,
            cuts=[cut(w) for w in windowed],
            chunks=calibration_chunks(context.normal, context.data, images, chunk, settings.runtime),
            runtime=settings.runtime if here else replace(settings.runtime, threads=1),
            confidence=None if settings.exhaustive else CONFIDENCE,
            memory=context.memory // (1 if here else workers.workers),
            kinds=context.normal.kinds,
        )
        shared = workers.share("bench", bench, here)
        tasks: dict[str, Task] = {
            str(i): partial(_measuring, shared, bench.key, i, w, here) for i, w in enumerate(windowed)
        }
        steps = {str(i): sum(len(c.options) for c in w) for i, w in enumerate(windowed)}
        found = workers.run("sensitivity", tasks, steps, here)
        forget()
        workers.renew()  # frees sessions and activations before the largest layers are decomposed
        return {key: value for window in found.values() for key, value in window.items()}

    def _times(self, clock: Clock | None, chains: Mapping[str, list[Chain]]) -> dict[str, Times]:
        """Seconds of each layer and of its chains, by layer name; unknown ones are measured. None without latency."""
        if clock is None:
            return dict.fromkeys(chains)
        every = {n: [(self.layers[n].layer.geometry,), *own] for n, own in chains.items()}
        clock.measure((n, c) for n, own in every.items() for c in own)
        return {n: clock.times(n, own) for n, own in every.items()}

    def _variants(
        self, subject: CompressibleLayer, groups: dict[str, GroupProfile], plain: Sequence[Candidate], align: int
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
            macs=subject.macs(),
            parameters=sum(
                self.context.costs[use.name].parameters for use in subject.uses
            ),  # without the bias that may be added to the layer
            seconds=choices[0].seconds,
            choices=choices,
            also=[use.name for use in subject.further],
        )


def sensitivity_images(context: Context) -> int:
    """The number of images that sensitivity is measured on."""
    in_proportion = MOST_IMAGES * IMAGE_MACS / max(context.cost.macs, 1)
    return context.settings.kl_samples or int(min(max(in_proportion, LEAST_IMAGES), MOST_IMAGES))


def _work(subject: CompressibleLayer) -> float:
    """About how long a layer's weights take to compute, in any unit: products of its second moment with its weights."""
    return float(subject.layer.geometry.features**2 * subject.layer.geometry.outputs)


def _task(*call: Any) -> tuple[Any, ...]:
    return call


def _measuring(
    shared: Callable[[], Bench], key: str, number: int, window: Sequence[Change], here: bool
) -> tuple[Any, ...]:
    """The task to measure a window. For a worker, all values are computed now; in this process, only when used."""
    return measure, shared, key, number, window if here else [change.made() for change in window]


def _summed(walk: Walk, use: Use, geometry: Geometry, positions: np.ndarray, lane: slice) -> Moments:
    """The moments of what one use of a layer reads, over some of the walk's chunks."""
    found = Moments()
    for chunk in walk.chunks[lane]:
        found.update(sampled_patches(chunk[use.input], geometry, positions))
    return found


def _group_profile(
    group: ChannelGroup,
    layers: dict[str, CompressibleLayer],
    elimination: Elimination,
    nats: dict[Hashable, float],
    removable: bool,
) -> GroupProfile:
    choices = [GroupChoice(keep=group.size, removed=[], sensitivity=0.0)]
    for m in sorted(elimination.weights):
        removed = sorted(int(c) for c in elimination.order[:m])
        choices.append(GroupChoice(keep=group.size - m, removed=removed, sensitivity=nats["group", group.name, m]))
    if removable:
        loss = nats.get(("group", group.name, group.size), 0.0)  # 0 for a group further inside the branch
        choices.append(GroupChoice(keep=0, removed=list(range(group.size)), sensitivity=loss))
    return GroupProfile(
        name=group.name,
        size=group.size,
        producers=[subject.layer.name for subject, _ in readers(group, layers, "produces")],
        consumers=[subject.layer.name for subject, _ in readers(group, layers)],
        choices=choices,
    )


def _repaired(
    subject: CompressibleLayer, compressible: Compressible, eliminations: dict[str, Elimination]
) -> dict[int, Kept]:
    """The consumer's repaired weight (O, I, *kernel), by index of its input group's choice; none for the first."""
    if subject.input_group is None or subject.grouped:
        return {}
    names = [s.layer.name for s, _ in readers(compressible.groups[subject.input_group], compressible.layers)]
    place, weights = names.index(subject.layer.name), eliminations[subject.input_group].weights
    return {choice: weights[m][place] for choice, m in enumerate(sorted(weights), start=1)}
