"""Channel groups, found from what tracing has recorded, and the removal of their channels from the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from passes.core.declined import Declined, Why
from passes.core.errors import ModelError
from passes.graph.naming import unused_name

__all__ = ["Adjustment", "ChannelGroup", "Channels", "Slot", "components", "find_groups"]


# (id of a constant, axis, mask of kept entries) -> (that constant, held so that its id stays its own; the new one).
Taken = dict[tuple[int, int, bytes], tuple[gs.Constant, gs.Constant]]


@dataclass(frozen=True)
class Slot:
    """An axis of a node's constant input (`index`) whose entries are channels.

    `role` is "produces" (the channels begin here), "consumes" (they end here) or "follows" (there is one value for
    each channel on the way, such as a scale). `ids` has one channel id for each entry of the axis.
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
    """A change that a node needs, besides its slots, when channels of `ids` are removed: `apply(keep)`.

    keep is a bool array (count,), with keep[id] False for each removed id.
    """

    node: gs.Node
    ids: np.ndarray
    apply: Callable[[np.ndarray], None]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are produced, passed on and consumed together.

    They are divided into classes: the channels of a class must be removed together, and each class can be removed.

    Attributes:
        name: name of the first node that produces the channels.
        slots: every parameter axis that carries the channels.
        classes: for each slot, the class of each entry: an int array, -1 for entries of another group.
        size: number of classes. Removing class c removes every entry of class c from every slot.
        declined: why nothing may be removed; None if it may.
        parts: for each tensor of activations that carries the channels, the class of each channel (-1: of another
            group). Each of these tensors must keep one class at least.
        ids: for each class, the ids of its channels.
    """

    name: str
    slots: tuple[Slot, ...]
    classes: tuple[np.ndarray, ...]
    size: int
    declined: Declined | None
    parts: tuple[np.ndarray, ...] = field(repr=False)
    ids: tuple[np.ndarray, ...] = field(repr=False)

    @property
    def closed(self) -> str | None:
        """The reason of `declined`, as a sentence; None if the group may be pruned."""
        return None if self.declined is None else self.declined.reason

    def members(self, role: str) -> list[tuple[Slot, np.ndarray]]:
        """Slots of one role with their classes."""
        return [(s, c) for s, c in zip(self.slots, self.classes, strict=True) if s.role == role]


@dataclass(frozen=True)
class Channels:
    """The result of tracing a model.

    Attributes:
        graph: the graph that was traced, from which `remove` removes channels.
        groups: the channel groups.
        adjustments: what changes besides the slots when channels are removed.
        carriers: ids by the name of an activation tensor that carries them, one tensor for each array of ids.
        count: number of channel ids.
    """

    graph: gs.Graph = field(repr=False)
    groups: tuple[ChannelGroup, ...]
    adjustments: tuple[Adjustment, ...]
    carriers: dict[str, np.ndarray]
    count: int

    def joined(self, names: Collection[str]) -> Channels:
        """The same channels, with groups that share a parameter joined into one group.

        Behind a Concat, a layer reads channels of several groups. Joined, they are chosen together, and all inputs of
        the layer belong to one group. A joined group has the classes of all its parts, and each class is still removed
        on its own.

        Args:
            names: names of the groups that may be joined; the others stay as they are.

        Returns:
            Channels of the same graph. A joined group has the name of its first part; `remove` takes its classes.
        """
        own = [g for g in self.groups if g.name in names]
        first: dict[int, int] = {}  # for each slot, the first group that has it
        pairs = [(first.setdefault(id(s), i), i) for i, g in enumerate(own) for s in g.slots]
        a, b = np.array(pairs, int).reshape(-1, 2).T
        label = components(len(own), [(a, b)])
        parts = [[g for g, of in zip(own, label, strict=True) if of == n] for n in dict.fromkeys(label.tolist())]
        whole = {p[0].name: p[0] if len(p) == 1 else self._join(p) for p in parts}
        groups = [whole.get(g.name, g) for g in self.groups if g.name in whole or g.name not in names]
        return replace(self, groups=tuple(groups))

    def _join(self, parts: Sequence[ChannelGroup]) -> ChannelGroup:
        ids = tuple(of for part in parts for of in part.ids)
        index = np.full(self.count, -1)
        for c, of in enumerate(ids):
            index[of] = c
        slots = tuple({id(s): s for part in parts for s in part.slots}.values())
        carried = [index[of] for of in self.carriers.values()]
        return ChannelGroup(
            name=parts[0].name,
            slots=slots,
            classes=tuple(index[s.ids] for s in slots),
            size=len(ids),
            declined=None,
            parts=tuple(classes for classes in carried if (classes >= 0).any()),
            ids=ids,
        )

    def remove(self, removed: dict[str, np.ndarray]) -> None:
        """Remove classes of groups from the traced graph, in place.

        Args:
            removed: the classes to remove, by name of the group.

        Raises:
            ModelError: a group is closed or unknown, has no such class, or a tensor would lose its last channel.
        """
        keep = np.ones(self.count, bool)
        by_name = {g.name: g for g in self.groups}
        for name, classes in removed.items():
            group = by_name.get(name)
            if group is None:
                raise ModelError(
                    f"there is no channel group '{name}': a group has the name of the first node that produces its "
                    "channels, and passes.channels.trace lists them"
                )
            if group.closed:
                raise ModelError(f"channel group '{name}' cannot be pruned: {group.closed}")
            for c in classes:
                if not 0 <= c < group.size:
                    raise ModelError(f"channel group '{name}' has no class {c}: it has {group.size}")
                keep[group.ids[c]] = False
        slots = {id(s): s for g in self.groups for s in g.slots}.values()
        for slot in slots:
            if len(slot.ids) and not keep[slot.ids].any():
                raise ModelError(f"pruning would leave node '{slot.node.name}' without channels: remove fewer")
        for tensor, ids in self.carriers.items():
            if len(ids) and not keep[ids].any():
                raise ModelError(f"pruning would leave tensor '{tensor}' without channels: remove fewer")
        taken: Taken = {}
        for slot in slots:
            if not keep[slot.ids].all():
                _take(self.graph, slot, keep[slot.ids], taken)
        _keep_names(taken)
        for adjustment in self.adjustments:
            if not keep[adjustment.ids].all():
                adjustment.apply(keep)


def _take(graph: gs.Graph, slot: Slot, keep: np.ndarray, taken: Taken) -> None:
    """Prune a slot's axis to the entries in `keep`; nodes that prune a shared constant alike go on sharing it."""
    old = slot.node.inputs[slot.index]
    key = (id(old), slot.axis, keep.tobytes())
    if key in taken:
        slot.node.inputs[slot.index] = taken[key][1]
        return
    values = np.compress(keep, np.asarray(old.values), slot.axis)
    shared = len({id(n) for n in old.outputs}) > 1 or sum(t is old for t in slot.node.inputs) > 1
    name = unused_name(graph, f"{old.name}:{slot.node.name}:{slot.index}") if shared else old.name
    new = gs.Constant(name, values)
    slot.node.inputs[slot.index] = new
    taken[key] = (old, new)


def _keep_names(taken: Taken) -> None:
    """Give constants that have replaced a shared one its name, where all its readers now read the same new one."""
    made = Counter(id(old) for old, _ in taken.values())
    for old, new in taken.values():
        if made[id(old)] == 1 and not old.outputs:
            new.name = old.name


def find_groups(
    count: int,
    slots: Sequence[Slot],
    ties: Sequence[tuple[np.ndarray, np.ndarray]],
    closed: Sequence[tuple[np.ndarray, Declined]],
    carriers: Sequence[np.ndarray],
) -> tuple[ChannelGroup, ...]:
    """The groups of `count` ids: those that a producer writes together, and all that is tied to them.

    Args:
        count: number of ids.
        slots, ties, closed: as `Tracer` has recorded them.
        carriers: ids that tensors of activations carry, an array for each.
    """
    produced = [s for s in slots if s.role == "produces"]
    if not produced:
        return ()
    class_of = components(count, ties)
    group_of = components(count, [*ties, *((s.ids, np.full_like(s.ids, s.ids[0])) for s in produced)])
    why_closed: dict[int, Declined] = {}
    for ids, reason in closed:
        for g in np.unique(group_of[ids]):
            why_closed.setdefault(int(g), reason)
    members = _by_group([s.ids for s in slots], group_of)
    parts = _by_group(carriers, group_of)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], np.arange(group_of.max() + 2))
    index = np.full(count, -1)
    found = []
    for g in dict.fromkeys(int(group_of[s.ids[0]]) for s in produced):
        ids = order[starts[g] : starts[g + 1]]
        labels, classes = np.unique(class_of[ids], return_inverse=True)
        index[ids] = classes
        own = tuple(slots[i] for i in members[g])
        by_class = np.argsort(classes, kind="stable")
        cuts = np.searchsorted(classes[by_class], np.arange(1, len(labels)))
        found.append(
            ChannelGroup(
                name=next(s.node.name for s in own if s.role == "produces"),
                slots=own,
                classes=tuple(index[s.ids] for s in own),
                size=len(labels),
                declined=why_closed.get(g) or _never_consumed(own),
                parts=tuple(index[carriers[i]] for i in parts.get(g, [])),
                ids=tuple(np.split(ids[by_class], cuts)),
            )
        )
        index[ids] = -1
    return tuple(found)


def _by_group(arrays: Sequence[np.ndarray], group_of: np.ndarray) -> dict[int, list[int]]:
    """For each group, the indices of the arrays that hold ids of it."""
    found: dict[int, list[int]] = {}
    for i, ids in enumerate(arrays):
        for g in np.unique(group_of[ids]):
            found.setdefault(int(g), []).append(i)
    return found


def components(count: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """For each of `count` ids, the label of its connected component (count,); all pairs are edges."""
    a = np.concatenate([p[0] for p in pairs] or [np.zeros(0, int)])
    b = np.concatenate([p[1] for p in pairs] or [np.zeros(0, int)])
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _never_consumed(members: tuple[Slot, ...]) -> Declined | None:
    if any(s.role == "consumes" for s in members):
        return None
    producer = next(s.node.name for s in members if s.role == "produces")
    return Declined(producer, Why.UNREAD, "no layer with constant weights reads it")
