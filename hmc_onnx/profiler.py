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
import onnx_graphsurgeon as gs

from calib.batching import calibration_chunks, input_shapes
from calib.data import CalibrationData
from calib.moments import sample_positions, sampled_patches
from calib.sensitivity import Change, sensitivities
from calib.walk import Walk
from hmc_onnx.candidates import Candidate, decompositions, layer_choices, removal
from hmc_onnx.elimination import Elimination
from hmc_onnx.parallel import run_tasks, workers
from hmc_onnx.profiles import GroupChoice, GroupProfile, LayerProfile, Profile
from hmc_onnx.settings import Settings
from hmc_onnx.subjects import Subject, Subjects, find_subjects
from passes.channels import ChannelGroup
from passes.cost import Cost, costs
from passes.errors import ModelError
from passes.layers import write_layer
from passes.model import Model
from passes.progress import Progress, silent

__all__ = ["profile"]


def profile(model: Model, data: CalibrationData, settings: Settings, progress: Progress = silent) -> Profile:
    """Profile a normalised model.

    Args:
        model: normalised; not changed.
        data: calibration images as feeds of the model.
        settings: see `Settings`.
        progress: called as the work goes on.

    Raises:
        ModelError: the model has no layer that could be compressed.
    """
    with workers():
        return _profile(model, data, settings, progress)


def _profile(model: Model, data: CalibrationData, settings: Settings, progress: Progress) -> Profile:
    inputs = input_shapes(model.header, data)
    digest, table = model.digest(), costs(model, inputs)
    cost = sum(table.values(), Cost())
    model = model.copy()
    subjects = find_subjects(model, inputs)
    if not any(node.op == "Conv" for node in model.graph.nodes):
        raise ModelError("the model has no Conv, so there is nothing to compress: give a convolutional network")
    if not subjects.layers:
        reasons = "; ".join(f"'{k}': {v}" for k, v in subjects.declined.items())
        raise ModelError(f"the model has nothing to compress ({reasons}): give a network of Convs")
    nodes = {n.name: n for n in model.graph.nodes}
    for name, subject in subjects.layers.items():  # own initializers, bias included, which can then be fed
        write_layer(model.graph, nodes[name], subject.layer.weight, subject.layer.bias)
    chunks = calibration_chunks(model, data, settings.samples, settings.batch, settings.runtime)
    _measure_moments(Walk(model, chunks, settings.runtime), subjects.layers, settings, progress)

    layers, align = subjects.layers, settings.align
    tasks: list[Callable[[], Any]] = [removal(g, layers, align) for g in subjects.groups.values()]
    found = run_tasks("channels to spare", tasks, progress)
    eliminations: dict[str, Elimination] = dict(zip(subjects.groups, found, strict=True))
    tasks = [partial(decompositions, s, align) for s in layers.values()]
    plain: dict[str, list[Candidate]] = dict(zip(layers, run_tasks("decompositions", tasks, progress), strict=True))

    few = math.ceil(settings.kl_samples / len(next(iter(chunks[0].values()))))
    walk = Walk(model, chunks[:few], settings.runtime)
    changes = [*_group_changes(subjects, eliminations, nodes), *_layer_changes(layers, plain, nodes)]
    nats = sensitivities(walk, changes, progress)

    groups = {g.name: _group_profile(g, eliminations[g.name], nats) for g in subjects.groups.values()}
    tasks = [
        partial(
            layer_choices,
            s,
            plain[name],
            [nats["layer", name, c.method, c.rank] for c in plain[name]],
            (groups[s.input_group], {} if s.grouped else _own_weights(s, subjects, eliminations))
            if s.input_group
            else None,
            groups[s.output_group] if s.output_group else None,
            align,
        )
        for name, s in layers.items()
    ]
    choices = run_tasks("decompositions after pruning", tasks, progress)
    return Profile(
        model=digest,
        data=data.digest(),
        settings=settings,
        macs=cost.macs,
        parameters=cost.parameters,
        groups=list(groups.values()),
        layers=[
            LayerProfile(
                name=name,
                input_group=s.input_group,
                output_group=s.output_group,
                macs=s.layer.geometry.macs(s.size),
                parameters=table[name].parameters,  # without the bias that the layer may be given
                choices=c,
            )
            for (name, s), c in zip(layers.items(), choices, strict=True)
        ],
        declined=subjects.declined,
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
        yield _change(consumers, options, nodes)


def _layer_changes(
    layers: dict[str, Subject], plain: dict[str, list[Candidate]], nodes: dict[str, gs.Node]
) -> Iterable[Change]:
    for name, subject in layers.items():
        options = {("layer", name, c.method, c.rank): partial(_candidate_feeds, nodes, subject, c) for c in plain[name]}
        yield _change([subject], options, nodes)


def _change(
    changed: Sequence[Subject], options: Mapping[Any, Callable[[], dict[str, np.ndarray]]], nodes: dict[str, gs.Node]
) -> Change:
    first = min(changed, key=lambda s: s.position)
    initializers = tuple(t.name for s in changed for t in nodes[s.layer.name].inputs[1:3])
    return Change(first.layer.input, first.position, initializers, options)


def _candidate_feeds(nodes: dict[str, gs.Node], subject: Subject, candidate: Candidate) -> dict[str, np.ndarray]:
    return _feeds(nodes, [subject], [candidate.kernel])


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


def _group_profile(group: ChannelGroup, elimination: Elimination, nats: dict[Hashable, float]) -> GroupProfile:
    choices = [GroupChoice(keep=group.size, removed=[], sensitivity=0.0)]
    for m in sorted(elimination.weights):
        removed = sorted(int(c) for c in elimination.order[:m])
        choices.append(GroupChoice(keep=group.size - m, removed=removed, sensitivity=nats["group", group.name, m]))
    return GroupProfile(
        name=group.name,
        size=group.size,
        producers=[s.node.name for s, _ in group.members("produces")],
        consumers=[s.node.name for s, _ in group.members("consumes")],
        choices=choices,
    )


def _own_weights(subject: Subject, subjects: Subjects, eliminations: dict[str, Elimination]) -> dict[int, np.ndarray]:
    """A consumer's repaired weight for each removal count of its input group."""
    assert subject.input_group is not None
    names = [s.node.name for s, _ in subjects.groups[subject.input_group].members("consumes")]
    place = names.index(subject.layer.name)
    return {m: weights[place] for m, weights in eliminations[subject.input_group].weights.items()}
