"""Which channels depend on which: every channel of every tensor gets an id, and operators pass the ids on.

The ids of a tensor are an integer array that broadcasts against it: (1, C, 1, 1) for the channels of an
NCHW activation. An operator that moves data is traced by running it on the ids; one that adds two
tensors ties their ids; a Conv ends the ids of its input (its weight's axis 1 *consumes* them) and begins new
ones (its weight's axis 0 *produces* them). What is tied must go together: these are the connected
components of all ties, found once at the end. Removing channels is then a `take` on every parameter axis
that carries ids, whatever the graph between them looks like.

An operator without a rule closes the ids it touches: they are reported and never removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from passes.errors import ModelError
from passes.model import Model
from passes.shapes import Shapes, batch_one, infer_shapes

__all__ = ["ChannelGroup", "Channels", "Slot", "Tracer", "register", "rule_for", "rules", "trace"]


@dataclass(frozen=True)
class Slot:
    """An axis of a node's constant input (`index`) whose entries are channels.

    `role` is "produces" (the channels begin here), "consumes" (they end here) or "follows" (one value a
    channel on the way, such as a scale). `ids` has one channel id for each entry of the axis.
    """

    node: gs.Node
    index: int
    axis: int
    role: str
    ids: np.ndarray

    def __str__(self) -> str:
        return f"{self.node.name}[{self.role}]"


@dataclass(frozen=True)
class Adjustment:
    """What else a node needs when channels go: `apply(keep)`, with keep[id] False for each id removed."""

    node: gs.Node
    ids: np.ndarray
    apply: Callable[[np.ndarray], None]


@dataclass
class Tracer:
    """What the rules read and write while the graph is walked in topological order."""

    shapes: Shapes
    ids: dict[str, np.ndarray] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    adjustments: list[Adjustment] = field(default_factory=list)
    closed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    count: int = 0

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Number of axes of a tensor; None if unknown."""
        shape = self.shapes.get(tensor.name)
        return None if shape is None else len(shape)

    def fresh(self, count: int) -> np.ndarray:
        """New ids, tied to none but shrinking as one group."""
        ids = np.arange(self.count, self.count + count)
        self.count += count
        return ids

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Each channel of `a` stands and falls with the one of `b` at its place; shapes broadcast."""
        if a is not b:
            a, b = np.broadcast_arrays(a, b)
            self.ties.append((a.ravel(), b.ravel()))

    def close(self, ids: np.ndarray, reason: str) -> None:
        """These channels cannot be removed, and why."""
        self.closed.append((ids.ravel(), reason))

    def axis_ids(self, tensor: gs.Tensor, axis: int) -> np.ndarray | None:
        """Ids along one axis of a tensor, one an entry; None if it carries none or they vary along others."""
        ids, shape = self.ids.get(tensor.name), self.shapes.get(tensor.name)
        if ids is None or ids.size != ids.shape[axis]:
            return None
        if shape is not None and shape[axis] not in (None, ids.size):  # a single channel, of another axis
            return None
        return ids.ravel()


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are produced, passed on and consumed together, and so can be removed one class at a time.

    Attributes:
        name: the first producer's node name.
        slots: every parameter axis that carries them.
        classes: for each slot, the class of each entry: an int array, -1 for entries of another group.
        size: number of classes. Removing class c removes every entry of class c from every slot.
        closed: one sentence why nothing may be removed; None if it may.
    """

    name: str
    slots: tuple[Slot, ...]
    classes: tuple[np.ndarray, ...]
    size: int
    closed: str | None
    ids: tuple[np.ndarray, ...] = field(repr=False)

    def members(self, role: str) -> list[tuple[Slot, np.ndarray]]:
        """Slots of one role with their classes."""
        return [(s, c) for s, c in zip(self.slots, self.classes, strict=True) if s.role == role]


Rule = Callable[[gs.Node, Tracer], None]
_RULES: dict[str, Rule] = {}


def register(*operators: str) -> Callable[[Rule], Rule]:
    """Decorator: this function traces these operators of the default domain.

    Raises:
        ValueError: an operator has a rule already.
    """

    def decorate(rule: Rule) -> Rule:
        for op in operators:
            if op in _RULES:
                raise ValueError(f"operator {op} has a channel rule already")
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return decorate


def rules() -> dict[str, Rule]:
    """Every operator that has a rule."""
    import passes.channels.operators  # noqa: F401, PLC0415  the rules register themselves on import

    return dict(_RULES)


def rule_for(node: gs.Node) -> Rule | None:
    """The node's rule; None for custom domains and unknown operators."""
    return rules().get(node.op) if node.domain in (None, "", "ai.onnx") else None


@dataclass(frozen=True)
class Channels:
    """The result of tracing a model: its groups, and for each closed id the reason."""

    groups: tuple[ChannelGroup, ...]
    adjustments: tuple[Adjustment, ...]
    count: int

    def remove(self, removed: dict[str, np.ndarray]) -> None:
        """Remove classes of groups from the traced graph, in place.

        Args:
            removed: for a group's name, the classes to remove.

        Raises:
            ModelError: a group is closed or unknown, or would lose its last channel.
        """
        keep = np.ones(self.count, bool)
        by_name = {g.name: g for g in self.groups}
        for name, classes in removed.items():
            group = by_name.get(name)
            if group is None or group.closed:
                raise ModelError(f"channel group '{name}' cannot be pruned: {group.closed if group else 'unknown'}")
            for c in classes:
                keep[group.ids[c]] = False
        for group in self.groups:
            for slot in group.slots:
                kept = keep[slot.ids]
                if not kept.any():
                    raise ModelError(f"pruning would leave node '{slot.node.name}' without channels: remove fewer")
        done: set[int] = set()
        for group in self.groups:
            for slot in group.slots:
                if id(slot) not in done and not keep[slot.ids].all():
                    done.add(id(slot))
                    _take(slot, keep[slot.ids])
        for adjustment in self.adjustments:
            if not keep[adjustment.ids].all():
                adjustment.apply(keep)


def _take(slot: Slot, keep: np.ndarray) -> None:
    old = slot.node.inputs[slot.index]
    values = np.compress(keep, np.asarray(old.values), slot.axis)
    shared = len({id(n) for n in old.outputs}) > 1
    name = f"{old.name}:{slot.node.name}" if shared else old.name
    slot.node.inputs[slot.index] = gs.Constant(name, values)


def trace(model: Model, inputs: dict[str, tuple[int, ...]] | None = None) -> Channels:
    """Trace the channels of a normalised model and find its groups. Near-linear in channels and nodes.

    Args:
        model: the graph; later changes to it make the result stale.
        inputs: input shapes, by name; default: the model's own at batch 1.
    """
    shapes = infer_shapes(model, inputs or batch_one(model))
    tracer = Tracer(shapes)
    outputs = {t.name for t in model.graph.outputs}
    for node in model.graph.nodes:
        rule = rule_for(node)
        why = f"operator {node.op} (node '{node.name}') has no rule" if rule is None else None
        if any(t.outputs or t.name in outputs for t in node.outputs[1:]):
            why = why or f"the second output of {node.op} node '{node.name}' is read"
        if rule is not None and why is None:
            rule(node, tracer)
        for name in [t.name for t in node.inputs if why and t.name in tracer.ids]:
            tracer.close(tracer.ids[name], str(why))
        if any(isinstance(v, gs.Graph) for v in node.attrs.values()):
            for inner in node.attrs.values():
                for name in _outer_reads(inner):
                    if name in tracer.ids:
                        tracer.close(tracer.ids[name], f"it is read inside the {node.op} node '{node.name}'")
    for output in model.graph.outputs:
        if output.name in tracer.ids:
            tracer.close(tracer.ids[output.name], f"it is the model's output '{output.name}'")
    return Channels(_groups(tracer), tuple(tracer.adjustments), tracer.count)


def _outer_reads(value: object) -> set[str]:
    if not isinstance(value, gs.Graph):
        return set()
    reads = {t.name for n in value.nodes for t in n.inputs} | {t.name for t in value.outputs}
    return reads.union(*(_outer_reads(v) for n in value.nodes for v in n.attrs.values()), set())


def _components(count: int, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Component label of each of `count` ids under the union of all pairs."""
    a = np.concatenate([p[0] for p in pairs] or [np.zeros(0, int)])
    b = np.concatenate([p[1] for p in pairs] or [np.zeros(0, int)])
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _groups(tracer: Tracer) -> tuple[ChannelGroup, ...]:
    produced = [s for s in tracer.slots if s.role == "produces"]
    if not produced:
        return ()
    ties = list(tracer.ties)
    class_of = _components(tracer.count, ties)
    together = [(s.ids, np.full_like(s.ids, s.ids[0])) for s in produced]
    group_of = _components(tracer.count, ties + together)
    why_closed: dict[int, str] = {}
    for ids, reason in tracer.closed:
        for g in np.unique(group_of[ids]):
            why_closed.setdefault(int(g), reason)
    slots: dict[int, list[Slot]] = {}
    for slot in tracer.slots:
        for g in np.unique(group_of[slot.ids]):
            slots.setdefault(int(g), []).append(slot)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], np.arange(group_of.max() + 2))
    found = []
    for g in dict.fromkeys(int(group_of[s.ids[0]]) for s in produced):
        ids = order[starts[g] : starts[g + 1]]
        labels, classes = np.unique(class_of[ids], return_inverse=True)
        index = np.full(tracer.count, -1)
        index[ids] = classes
        members = tuple(slots[g])
        by_class = np.argsort(classes, kind="stable")
        cuts = np.searchsorted(classes[by_class], np.arange(1, len(labels)))
        found.append(
            ChannelGroup(
                name=next(s.node.name for s in members if s.role == "produces"),
                slots=members,
                classes=tuple(index[s.ids] for s in members),
                size=len(labels),
                closed=why_closed.get(g) or _never_consumed(members),
                ids=tuple(np.split(ids[by_class], cuts)),
            )
        )
    return tuple(found)


def _never_consumed(members: tuple[Slot, ...]) -> str | None:
    if any(s.role == "consumes" for s in members):
        return None
    return "no layer with constant weights reads it"
