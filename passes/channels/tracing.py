"""Which channels depend on which: every channel of every tensor gets an id, and operators pass the ids on.

A tensor that carries channels has them along one axis, with one id for each entry (`Stream`). A Conv ends the ids of
its input (its weight's axis 1 *consumes* them) and begins new ones (its weight's axis 0 *produces* them); an operator
that adds two tensors ties their ids; one that moves data moves the ids. Nodes that read the same weight have their ids
tied, so that the weight stays one. Tied channels must be removed together: they are the connected components of all
ties, found once at the end. Removing channels is then a `take` on every parameter axis that carries ids, whatever the
graph between them looks like.

Numbers of channels that the graph computes (by Shape), and arithmetic on them, are followed too: `Tracer.sizes`.
An operator without a rule closes the ids that it reads: they are reported and never removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.groups import Adjustment, Channels, Slot, components, find_groups
from passes.channels.registry import DEFAULT, Closed, Rules
from passes.core.declined import Declined, Why
from passes.graph.model import Model, constant_value
from passes.graph.naming import unused_name
from passes.graph.shapes import Shapes
from passes.graph.sharing import shared_weights
from passes.graph.subgraph import node_inputs

__all__ = ["Size", "Stream", "Tracer", "trace"]


@dataclass(frozen=True)
class Stream:
    """The channels of a tensor: `ids` has one id for each entry of `axis` (axis 0 of a tensor is the batch)."""

    axis: int
    ids: np.ndarray


@dataclass(frozen=True)
class Size:
    """One entry of a tensor that the graph computes from numbers of channels.

    Attributes:
        ids: the channels that the entry depends on; empty for a constant.
        value: the entry as long as no channel is removed, a numpy scalar.
        counts: whether the entry is the number of `ids` itself, and so stays right when channels are removed. If not,
            it is computed from such numbers (`c // 2`), and a node that reads it is given a constant instead.
    """

    ids: np.ndarray
    value: np.generic
    counts: bool


Sizes = tuple[Size | None, ...]


class TwoWays(Protocol):
    """A grouped Conv, which loses whole groups or equally many channels of each; ties elsewhere decide which.

    Attributes:
        node: the Conv or ConvTranspose.
        inputs, outputs: ids (groups, channels of each group).
    """

    node: gs.Node
    inputs: np.ndarray
    outputs: np.ndarray

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input, so that only whole groups can be removed."""

    @property
    def whole(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ties that hold if whole groups are removed: pairs of id arrays."""

    def is_torn(self, label: np.ndarray) -> bool:
        """Whether channels of different groups are tied; `label` by id is equal for tied channels."""

    def is_one(self, label: np.ndarray) -> bool:
        """Whether all its inputs are tied to each other, and all its outputs; `label` as for `is_torn`."""

    def by_group(self, tracer: Tracer) -> None:
        """Record ties and slots for the removal of whole groups."""

    def by_place(self, tracer: Tracer) -> None:
        """Record ties and slots for the removal of equally many channels of each group."""


@dataclass
class Tracer:
    """What the rules read and write while the graph is walked in topological order.

    Attributes:
        graph: the graph that is traced.
        shapes: shape of every tensor by name.
        opset: version of the default operator set.
        rules: how operators pass channels on.
        whole_groups: names of grouped Convs that may lose whole groups only.
        streams: the channels of tensors, by tensor name; a tensor without a stream has none that could be removed.
        sizes: by name, the flattened entries of each tensor that is computed from the shape of one with channels; None
            for an entry that depends on anything else.
        slots, adjustments: what changes when ids are removed.
        ties: pairs of id arrays; closed: ids with the reason.
        postponed: grouped Convs, which are decided once all other ties are known.
        count: number of ids so far.
        at: name of the node, or of the output, that is being traced.
    """

    graph: gs.Graph
    shapes: Shapes
    opset: int
    rules: Rules = DEFAULT
    whole_groups: Collection[str] = ()
    streams: dict[str, Stream] = field(default_factory=dict)
    sizes: dict[str, Sizes] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    adjustments: list[Adjustment] = field(default_factory=list)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    closed: list[tuple[np.ndarray, Declined]] = field(default_factory=list)
    postponed: list[TwoWays] = field(default_factory=list)
    count: int = 0
    at: str = ""

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """Shape of a tensor; raises Closed where it is not wholly known."""
        shape = self.shapes.get(tensor.name)
        if shape is None or None in shape:
            raise Closed(f"has a tensor of unknown shape, '{tensor.name}'", Why.UNKNOWN_SIZE)
        return shape  # type: ignore[return-value]

    def rank(self, tensor: gs.Tensor) -> int:
        """Number of axes of a tensor; raises Closed where it is not known."""
        shape = self.shapes.get(tensor.name)
        if shape is None:
            raise Closed(f"has a tensor of unknown rank, '{tensor.name}'", Why.UNKNOWN_SIZE)
        return len(shape)

    def stream(self, tensor: gs.Tensor) -> Stream | None:
        """The channels of a tensor, if it carries any."""
        return self.streams.get(tensor.name)

    def along(self, tensor: gs.Tensor, axis: int) -> np.ndarray | None:
        """The ids of a tensor that must have them along an axis; None if it carries none.

        Raises:
            Closed: it has them along another axis.
        """
        stream = self.stream(tensor)
        if stream is not None and stream.axis != axis:
            raise Closed(f"reads channels along axis {stream.axis}, not {axis}")
        return None if stream is None else stream.ids

    def emit(self, tensor: gs.Tensor, axis: int, ids: np.ndarray) -> None:
        """Set the channels of a tensor."""
        self.streams[tensor.name] = Stream(axis, ids)

    def pass_on(self, node: gs.Node) -> None:
        """Give the first output the channels of the first input."""
        stream = self.stream(node.inputs[0])
        if stream is not None:
            self.streams[node.outputs[0].name] = stream

    def fresh(self, count: int) -> np.ndarray:
        """New ids (count,), tied to none."""
        ids = np.arange(self.count, self.count + count)
        self.count += count
        return ids

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Tie each id of `a` to that of `b` at the same place, to be removed together; the arrays are broadcast."""
        if a is not b:
            a, b = np.broadcast_arrays(a, b)
            self.ties.append((a.ravel(), b.ravel()))

    def postpone(self, grouped: TwoWays) -> None:
        """Decide at the end in which way a grouped Conv may lose channels."""
        self.postponed.append(grouped)

    def tie_shared_weights(self) -> None:
        """Tie the channels of all nodes that read a weight, so that it is pruned alike for all and stays shared.

        Where one of them reads or writes channels that cannot be removed, those of the others are closed.
        """
        shared = shared_weights(self.graph)
        readers = {id(node): name for name, nodes in shared.items() for node in nodes}
        ends: dict[str, dict[int, dict[object, np.ndarray]]] = {}  # by weight, reader, and end: an axis, or in and out

        def record(node: gs.Node, end: object, ids: np.ndarray) -> None:
            ends.setdefault(readers[id(node)], {}).setdefault(id(node), {})[end] = ids

        for slot in self.slots:
            if id(slot.node) in readers and slot.node.inputs[slot.index].name == readers[id(slot.node)]:
                record(slot.node, slot.axis, slot.ids)
        for grouped in self.postponed:
            if id(grouped.node) in readers:
                record(grouped.node, "inputs", grouped.inputs)
                record(grouped.node, "outputs", grouped.outputs)
        for name, nodes in shared.items():
            own = [ends.get(name, {}).get(id(node), {}) for node in nodes]
            for end in dict.fromkeys(end for known in own for end in known):
                first, *others = [known[end] for known in own if end in known]
                if len(others) == len(nodes) - 1 and all(ids.shape == first.shape for ids in others):
                    for ids in others:
                        self.tie(first, ids)
                    continue
                told = ", ".join(f"'{node.name}'" for node in nodes)
                self.at = nodes[0].name
                for ids in (first, *others):
                    said = f"the weights that {told} share cannot lose these channels for all of them"
                    self.close(ids, said, Why.SHARED)

    def decide(self) -> None:
        """Let grouped Convs lose whole groups, or where other ties connect all their groups, equally many of each."""
        given = [grouped for grouped in self.postponed if grouped.depthwise or grouped.node.name in self.whole_groups]
        for grouped in given:
            grouped.by_group(self)
        left = [grouped for grouped in self.postponed if grouped not in given]
        torn: list[TwoWays] = left
        while left and torn:
            label = components(self.count, self.ties)
            torn = [g for g in left if g.is_torn(label) and g.is_one(components(self.count, [*self.ties, *g.whole]))]
            left = [grouped for grouped in left if grouped not in torn]
            for grouped in torn:
                grouped.by_place(self)
        for grouped in left:
            grouped.by_group(self)
        place = {id(node): i for i, node in enumerate(self.graph.nodes)}
        self.slots.sort(key=lambda slot: place[id(slot.node)])

    def close(self, ids: np.ndarray, reason: str, why: Why = Why.CHANNELS) -> None:
        """Record that these channels cannot be removed, for a reason at the node that is being traced."""
        self.closed.append((ids.ravel(), Declined(self.at, why, reason)))

    def slot(self, node: gs.Node, index: int, axis: int, role: str, ids: np.ndarray) -> None:
        """Record that an axis of a constant input has these channels; see `Slot`."""
        self.slots.append(Slot(node, index, axis, role, ids))

    def adjust(self, node: gs.Node, ids: np.ndarray, apply: Callable[[np.ndarray], None]) -> None:
        """Record that `apply(keep)` is to be called when any of these ids is removed; see `Adjustment`."""
        self.adjustments.append(Adjustment(node, ids, apply))

    def counted(self, tensor: gs.Tensor) -> np.ndarray:
        """The ids of the channels from whose number a tensor is computed; empty for most tensors."""
        ids = [s.ids for s in self.sizes.get(tensor.name, ()) if s is not None]
        return np.unique(np.concatenate(ids)) if ids else np.zeros(0, int)

    def value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The value of a tensor that is constant, or computed from constants and numbers of channels alone.

        A computed value holds as long as no channel is removed: see `freeze`. None for all other tensors.
        """
        entries = self.sizes.get(tensor.name)
        if entries is None:
            return constant_value(tensor)
        known = [s.value for s in entries if s is not None]
        return np.array(known).reshape(self.shape(tensor)) if known and len(known) == len(entries) else None

    def freeze(self, node: gs.Node, index: int) -> None:
        """Keep an input at its present value, even when channels are removed from whose number it is computed.

        Raises:
            Closed: its value is not known.
        """
        tensor = node.inputs[index]
        ids = self.counted(tensor)
        if not len(ids):
            return
        value = self.value(tensor)
        if value is None:
            raise Closed("computes with a number of channels", Why.UNKNOWN_SIZE)

        def replace(_: np.ndarray) -> None:
            node.inputs[index] = gs.Constant(unused_name(self.graph, f"{node.name}:value:{index}"), value)

        self.adjust(node, ids, replace)

    def close_tensors(self, tensors: Iterable[gs.Tensor], reason: str, why: Why) -> None:
        """Close the channels that tensors carry, and those from whose number they are computed."""
        for name in dict.fromkeys(t.name for t in tensors):
            if name in self.streams:
                self.close(self.streams[name].ids, reason, why)
            for size in self.sizes.get(name, ()):
                if size is not None:
                    self.close(size.ids, reason, why)


def trace(
    model: Model,
    inputs: dict[str, tuple[int, ...]] | None = None,
    rules: Rules = DEFAULT,
    whole_groups: Collection[str] = (),
) -> Channels:
    """Trace the channels of a normalised model and find its groups. Near-linear in channels and nodes.

    Args:
        model: the graph; later changes to it make the result stale.
        inputs: input shapes, by name; default: `model.sizes`.
        rules: how operators pass channels on.
        whole_groups: names of grouped Convs that may lose whole groups only. The others lose equally many channels of
            each group where ties leave no choice between whole groups.

    Raises:
        ModelError: the shapes cannot be inferred.
    """
    tracer = Tracer(model.graph, model.shapes_at(inputs or model.sizes), model.graph.opset, rules, whole_groups)
    outputs = {t.name for t in model.graph.outputs}
    for node in model.graph.nodes:
        _trace_node(node, tracer, outputs)
    for output in model.graph.outputs:
        tracer.at = output.name
        tracer.close_tensors([output], f"it is the model's output '{output.name}'", Why.OUTPUT)
    tracer.tie_shared_weights()
    tracer.decide()
    carriers = {id(s.ids): (name, s.ids) for name, s in tracer.streams.items()}
    groups = find_groups(tracer.count, tracer.slots, tracer.ties, tracer.closed, [ids for _, ids in carriers.values()])
    return Channels(model.graph, groups, tuple(tracer.adjustments), dict(carriers.values()), tracer.count)


def _trace_node(node: gs.Node, tracer: Tracer, outputs: set[str]) -> None:
    tracer.at = node.name
    rule = tracer.rules.rule_for(node)
    if rule is None:
        tracer.close_tensors(node_inputs(node), f"operator {node.op} (node '{node.name}') has no rule", Why.NO_RULE)
        return
    try:
        for output in node.outputs[rule.outputs :] if rule.outputs is not None else []:
            if output.outputs or output.name in outputs:
                raise Closed(f"has a further output that is read, '{output.name}'")
        if not rule.follows_sizes:
            for index in range(len(node.inputs)):
                tracer.freeze(node, index)
        rule.trace(node, tracer)
    except Closed as e:
        tracer.close_tensors(node_inputs(node), f"{node.op} node '{node.name}' {e}", e.why)
