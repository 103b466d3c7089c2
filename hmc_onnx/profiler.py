"""From a model and calibration data to a profile: candidates are made in closed form and measured on onnxruntime.

Two walks over the graph. The first streams the second moments of every layer's patches. Between them every
candidate's weights are computed: a decomposition amounts to another dense kernel for its layer, a pruned
group to zero columns in its consumers. So the second walk needs one session for each layer, on the part of
the graph behind it, into which the candidates' kernels are fed one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from calib.data import CalibrationData
from calib.divergence import kl_divergence
from calib.moments import Moments, sample_positions, sampled_patches
from calib.walk import Walk
from hmc_onnx.elimination import Consumer, Elimination, eliminate
from hmc_onnx.profile import KEEP, GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.settings import Settings
from passes.channels import ChannelGroup, trace
from passes.cost import total
from passes.decompose import DECOMPOSITIONS, chain_macs, chain_parameters, compose, error
from passes.errors import ModelError
from passes.layers import Geometry, Layer, layer_of, why_not_a_layer, write_layer
from passes.model import Model
from passes.shapes import infer_shapes

__all__ = ["RATIOS", "profile"]

# Cost ratios at which each decomposition is tried, and shares of a group's channels that are kept.
RATIOS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15)
SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)

Progress = Callable[[str, int, int], None]


@dataclass
class _Subject:
    """A layer under study."""

    layer: Layer
    size: tuple[int, ...]
    input_group: str | None = None
    output_group: str | None = None
    input_classes: np.ndarray | None = None
    output_classes: np.ndarray | None = None
    moments: Moments | None = None

    @property
    def moment(self) -> np.ndarray:
        assert self.moments is not None
        return self.moments.second


def profile(
    model: Model, data: CalibrationData, settings: Settings, progress: Progress = lambda *_: None
) -> Profile:
    """Profile a normalised model.

    Args:
        model: normalised; not changed.
        data: calibration images as feeds of the model.
        settings: see `Settings`.
        progress: called with (what, done, of).

    Raises:
        ModelError: the model has no layer that could be compressed.
    """
    digest = model.digest()
    model = model.copy()
    inputs = {name: (1, *array.shape[1:]) for name, array in data.feeds.items()}
    shapes = infer_shapes(model, inputs)
    subjects, declined = _subjects(model, shapes)
    if not subjects:
        raise ModelError("the model has no Conv or Gemm that can be compressed: " + _first_reason(declined))
    for node in model.graph.nodes:
        if node.name in subjects:
            write_layer(node, subjects[node.name].layer.weight, subjects[node.name].layer.bias)
    groups = _groups(model, inputs, subjects, declined)
    chunks = [feeds for feeds, _ in data.head(settings.samples).chunks(settings.batch)]
    _measure_moments(model, chunks, subjects, settings, progress)
    eliminations = {g.name: _eliminate(g, subjects, settings) for g in groups}
    plain = {name: list(_decompositions(s, settings)) for name, s in subjects.items()}
    sensitivities = _Measurement(model, chunks, subjects, settings, progress).run(groups, eliminations, plain)
    group_profiles = [_group_profile(g, eliminations[g.name], sensitivities) for g in groups]
    by_name = {g.name: g for g in group_profiles}
    layers = [
        _layer_profile(s, by_name, eliminations, groups, plain[name], sensitivities, settings)
        for name, s in subjects.items()
    ]
    cost = total(model, inputs)
    return Profile(
        model=digest,
        data=data.digest(),
        settings=settings,
        macs=cost.macs,
        parameters=cost.parameters,
        groups=group_profiles,
        layers=layers,
        declined=declined,
    )


def _first_reason(declined: dict[str, str]) -> str:
    return next((f"'{k}': {v}" for k, v in declined.items()), "there is none")


def _subjects(model: Model, shapes: dict) -> tuple[dict[str, _Subject], dict[str, str]]:
    subjects: dict[str, _Subject] = {}
    declined: dict[str, str] = {}
    for node in model.graph.nodes:
        if node.op not in ("Conv", "Gemm"):
            continue
        reason = why_not_a_layer(node, shapes)
        size = shapes.get(node.inputs[0].name, (None, None, None))[2:]
        if reason is None and None in size:
            reason = "the size of its input is not known"
        if reason is not None:
            declined[node.name] = reason
            continue
        layer = layer_of(node, shapes)
        if layer.geometry.groups > 1:
            declined[node.name] = "it is a grouped Conv, which is left as it is"
            continue
        subjects[node.name] = _Subject(layer, tuple(size))
    return subjects, declined


def _groups(model: Model, inputs: dict, subjects: dict[str, _Subject], declined: dict[str, str]) -> list[ChannelGroup]:
    """The groups whose producers and consumers are all subjects; each subject learns its own."""
    usable = []
    for group in trace(model, inputs).groups:
        ends = [(s, c) for s, c in zip(group.slots, group.classes, strict=True) if s.role != "follows"]
        strangers = [s.node.name for s, _ in ends if s.node.name not in subjects]
        reason = group.closed
        if reason is None and strangers:
            reason = f"'{strangers[0]}' takes part and is left as it is"
        if reason is None and any((c < 0).any() for _, c in ends):
            reason = "a layer reads it together with channels of other groups"
        if reason is not None:
            declined[f"channels of {group.name}"] = reason
            continue
        usable.append(group)
        for slot, classes in ends:
            subject = subjects[slot.node.name]
            if slot.role == "produces":
                subject.output_group, subject.output_classes = group.name, classes
            else:
                subject.input_group, subject.input_classes = group.name, classes
    return usable


def _measure_moments(
    model: Model, chunks: Sequence[dict], subjects: dict[str, _Subject], settings: Settings, progress: Progress
) -> None:
    walk = Walk(model, chunks, settings.provider)
    rng = np.random.default_rng(settings.seed)
    for done, subject in enumerate(subjects.values()):
        progress("second moments", done, len(subjects))
        geometry = subject.layer.geometry
        walk.advance([subject.layer.input])
        subject.moments = Moments()
        positions = sample_positions(geometry, subject.size, settings.positions, rng)
        for x in walk.values(subject.layer.input):
            subject.moments.update(sampled_patches(x, geometry, positions))


def _eliminate(group: ChannelGroup, subjects: dict[str, _Subject], settings: Settings) -> Elimination:
    consumers = [
        Consumer(subjects[s.node.name].layer.weight, subjects[s.node.name].moment, c)
        for s, c in group.members("consumes")
    ]
    align = settings.align
    keeps = sorted({max(align, int(group.size * share) // align * align) for share in SHARES})
    counts = [group.size - k for k in keeps if k < group.size]
    floors = [c for s, c in zip(group.slots, group.classes, strict=True) if s.role != "follows"]
    return eliminate(consumers, group.size, counts, floors, align)


@dataclass(frozen=True)
class _Candidate:
    method: str
    rank: int
    macs: int
    parameters: int
    error: float  # share of the layer's response
    kernel: np.ndarray


def _decompositions(subject: _Subject, settings: Settings) -> Iterator[_Candidate]:
    """Those that no cheaper one beats in local error, dearest first."""
    layer = subject.layer
    front = _front(layer.geometry, layer.weight, subject.moment, subject.size, settings, list(DECOMPOSITIONS))
    yield from front


def _front(
    geometry: Geometry,
    weight: np.ndarray,
    moment: np.ndarray,
    size: tuple[int, ...],
    settings: Settings,
    methods: Sequence[str],
) -> list[_Candidate]:
    response = max(error(weight, np.zeros_like(weight), moment), np.finfo(float).tiny)
    found = []
    for name in methods:
        method = DECOMPOSITIONS[name]
        if method.why_not(geometry):
            continue
        for rank in sorted({method.rank_for(geometry, size, r, settings.align) for r in RATIOS} - {None}):
            assert rank is not None
            links = method.links(geometry, rank)
            kernel = compose(links, method.factors(geometry, weight, moment, rank))
            loss = error(weight, kernel, moment) / response
            found.append(
                _Candidate(name, rank, chain_macs(links, size), chain_parameters(links), loss, kernel)
            )
    found.sort(key=lambda c: (c.macs, c.error))
    front: list[_Candidate] = []
    for candidate in found:
        if not front or candidate.error < front[-1].error * (1 - 1e-9):
            front.append(candidate)
    return front[::-1]


class _Measurement:
    """The second walk: KL of every candidate."""

    def __init__(
        self,
        model: Model,
        chunks: Sequence[dict],
        subjects: dict[str, _Subject],
        settings: Settings,
        progress: Progress,
    ) -> None:
        few = math.ceil(settings.kl_samples / settings.batch)
        self.walk = Walk(model, chunks[:few], settings.provider)
        self.subjects, self.progress = subjects, progress
        self.nodes: dict[str, gs.Node] = {n.name: n for n in model.graph.nodes}
        self.order = {n.name: i for i, n in enumerate(model.graph.nodes)}

    def run(
        self,
        groups: Sequence[ChannelGroup],
        eliminations: dict[str, Elimination],
        plain: dict[str, list[_Candidate]],
    ) -> dict[tuple, float]:
        """Nats by ("group", name, removed count) and by ("layer", name, method, rank)."""
        tasks: list[tuple[int, list[str], list[tuple[tuple, list[np.ndarray]]]]] = []
        for group in groups:
            names = [s.node.name for s, _ in group.members("consumes")]
            options = [(("group", group.name, m), w) for m, w in eliminations[group.name].weights.items()]
            tasks.append((min(self.order[n] for n in names), names, options))
        for name, candidates in plain.items():
            options = [(("layer", name, c.method, c.rank), [c.kernel]) for c in candidates]
            tasks.append((self.order[name], [name], options))
        results: dict[tuple, float] = {}
        reference: list[np.ndarray] | None = None
        of, done = sum(len(options) for *_, options in tasks), 0
        for _, names, options in sorted(tasks, key=lambda t: t[0]):
            if not options:
                continue
            first = min(names, key=self.order.__getitem__)
            self.walk.advance([self.subjects[first].layer.input])
            nodes = [self.nodes[n] for n in names]
            tail = self.walk.tail([t.name for n in nodes for t in n.inputs[1:3]])
            if reference is None:
                reference = tail.outputs({})
            for key, kernels in options:
                self.progress("sensitivity", done, of)
                weights: dict[str, np.ndarray] = {}
                for node, kernel in zip(nodes, kernels, strict=True):
                    weights |= _feeds(node, self.subjects[node.name], kernel)
                results[key] = kl_divergence(reference, tail.outputs(weights))
                done += 1
        return results


def _feeds(node: gs.Node, subject: _Subject, kernel: np.ndarray) -> dict[str, np.ndarray]:
    """A kernel and the bias that keeps the mean response, as values of a node's initializers."""
    assert subject.moments is not None
    layer = subject.layer
    shift = (layer.weight - kernel).reshape(len(kernel), -1) @ subject.moments.mean
    weight, bias = node.inputs[1:3]
    if node.op == "Gemm" and not node.attrs.get("transB", 0):
        kernel = kernel.T
    return {
        weight.name: np.ascontiguousarray(kernel, dtype=weight.dtype),
        bias.name: (layer.bias + shift).astype(bias.dtype),
    }


def _group_profile(group: ChannelGroup, elimination: Elimination, sensitivities: dict[tuple, float]) -> GroupProfile:
    choices = [GroupChoice(keep=group.size, removed=[], sensitivity=0.0)]
    for m in sorted(elimination.weights):
        choices.append(
            GroupChoice(
                keep=group.size - m,
                removed=sorted(int(c) for c in elimination.order[:m]),
                sensitivity=sensitivities["group", group.name, m],
            )
        )
    return GroupProfile(
        name=group.name,
        size=group.size,
        producers=[s.node.name for s, _ in group.members("produces")],
        consumers=[s.node.name for s, _ in group.members("consumes")],
        choices=choices,
    )


def _layer_profile(
    subject: _Subject,
    group_profiles: dict[str, GroupProfile],
    eliminations: dict[str, Elimination],
    groups: Sequence[ChannelGroup],
    plain: list[_Candidate],
    sensitivities: dict[tuple, float],
    settings: Settings,
) -> LayerProfile:
    layer, geometry = subject.layer, subject.layer.geometry
    measured = [(c.error, sensitivities["layer", layer.name, c.method, c.rank]) for c in plain]
    curve = _Curve(measured)
    methods = sorted({c.method for c in plain} & {"svd", "spatial"})
    input_choices = group_profiles[subject.input_group].choices if subject.input_group else [None]
    output_choices = group_profiles[subject.output_group].choices if subject.output_group else [None]
    response = max(error(layer.weight, np.zeros_like(layer.weight), subject.moment), np.finfo(float).tiny)
    choices = []
    for a, given in enumerate(input_choices):
        weight, kept_in = layer.weight, np.ones(geometry.inputs, bool)
        if given is not None and given.removed:
            assert subject.input_group is not None and subject.input_classes is not None
            kept_in = ~np.isin(subject.input_classes, given.removed)
            weight = _repaired(subject, groups, eliminations[subject.input_group], len(given.removed))
        for b, taken in enumerate(output_choices):
            kept_out = np.ones(geometry.outputs, bool)
            if taken is not None and taken.removed:
                assert subject.output_classes is not None
                kept_out = ~np.isin(subject.output_classes, taken.removed)
            part = geometry.resized(int(kept_in.sum()), int(kept_out.sum()))
            choices.append(
                LayerChoice(
                    inputs=a,
                    outputs=b,
                    method=KEEP,
                    rank=0,
                    macs=part.macs(subject.size),
                    parameters=part.parameters + part.outputs,
                    error=0.0,
                    sensitivity=0.0,
                    measured=True,
                )
            )
            if a == b == 0:
                found = plain
            else:
                k = math.prod(geometry.kernel)
                features = np.flatnonzero(np.repeat(kept_in, k))
                block = weight[np.ix_(kept_out, kept_in)]
                moment = subject.moment[np.ix_(features, features)]
                scale = max(error(block, np.zeros_like(block), moment), np.finfo(float).tiny) / response
                found = [
                    _Candidate(c.method, c.rank, c.macs, c.parameters, c.error * scale, c.kernel)
                    for c in _front(part, block, moment, subject.size, settings, methods)
                ]
            for c in found:
                choices.append(
                    LayerChoice(
                        inputs=a,
                        outputs=b,
                        method=c.method,
                        rank=c.rank,
                        macs=c.macs,
                        parameters=c.parameters,
                        error=c.error,
                        sensitivity=sensitivities["layer", layer.name, c.method, c.rank]
                        if a == b == 0
                        else curve(c.error),
                        measured=a == b == 0,
                    )
                )
    return LayerProfile(
        name=layer.name,
        input_group=subject.input_group,
        output_group=subject.output_group,
        macs=geometry.macs(subject.size),
        parameters=geometry.parameters + geometry.outputs,
        choices=choices,
    )


def _repaired(
    subject: _Subject, groups: Sequence[ChannelGroup], elimination: Elimination, removed: int
) -> np.ndarray:
    group = next(g for g in groups if g.name == subject.input_group)
    names = [s.node.name for s, _ in group.members("consumes")]
    return elimination.weights[removed][names.index(subject.layer.name)]


class _Curve:
    """A layer's sensitivity against its local error: log-log between measured points, proportional beyond."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        usable = sorted((e, s) for e, s in points if e > 0 and s > 0)
        self.errors = np.log([e for e, _ in usable])
        self.sensitivities = np.maximum.accumulate(np.log([s for _, s in usable])) if usable else np.zeros(0)

    def __call__(self, value: float) -> float:
        if value <= 0:
            return 0.0
        if len(self.errors) == 0:
            return value
        at = math.log(value)
        inside = min(max(at, self.errors[0]), self.errors[-1])
        return float(math.exp(np.interp(inside, self.errors, self.sensitivities) + at - inside))
