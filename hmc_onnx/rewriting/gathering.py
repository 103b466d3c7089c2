"""What a layer is fitted to: its patches in the compressed network, and the original's responses at the same positions.

Both networks are walked side by side. The target of a layer that ends a residual branch is the original sum minus the
compressed network's shortcut, where that is computed already in both networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from calib.measure.lanes import in_lanes
from calib.measure.moments import sample_positions, sampled_outputs, sampled_patches
from calib.measure.walk import Walk
from hmc_onnx.execution.context import Context
from hmc_onnx.records.plan import Plan
from hmc_onnx.rewriting.fitting import Fit
from hmc_onnx.rewriting.pruning import Pruned
from passes.graph.cost import images_of, maps_an_image
from passes.graph.layers import OPERATORS, Layer
from passes.graph.model import Model
from passes.graph.shapes import Shapes
from passes.residual import residual_sum

__all__ = ["Use", "Walks", "fits", "walk_over"]

# Parts that the memory for activations is divided into: two walks hold one each, and a third walk, and what onnxruntime
# takes while it runs, the others.
PARTS = 4

Chunk = Mapping[str, np.ndarray]


class Walks:
    """The walks over the two networks of a run, at their starts.

    Args:
        compressed: the network whose layers are fitted one after the other.
        kept: what is left of it after pruning.
        plan: the plan that is applied.
        context: the run.
        begun: a walk over the original that has come to no change of the plan, to go on from; default: a new one.

    Attributes:
        original: the walk over the original.
        compressed: the walk over the other network.
        nodes: the original's nodes, by name.
        rng: draws the positions.
    """

    def __init__(
        self, compressed: Model, kept: Pruned, plan: Plan, context: Context, begun: Walk | None = None
    ) -> None:
        self.kept, self.plan, self.context = kept, plan, context
        begun = begun or self.anew()
        self.original, self.compressed = begun.fork(context.normal), begun.fork(compressed)
        self.nodes = {n.name: n for n in context.normal.graph.nodes}
        self.rng = np.random.default_rng(plan.settings.seed)

    def anew(self) -> Walk:
        """Another walk over the original, at its start."""
        return walk_over(self.context, self.context.chunks)


def walk_over(context: Context, images: Iterable[Chunk]) -> Walk:
    """One of the walks over the original of a run that are there at once, at its start.

    Args:
        context: the run.
        images: as feeds, chunk by chunk.
    """
    return Walk(context.normal, images, context.runtime, context.memory // PARTS)


@dataclass(frozen=True)
class Use:
    """A node of the compressed network that applies a layer.

    Attributes:
        node: the node.
        bias: index of its bias among the different biases of the layer.
        known: whether its input can be computed now.
    """

    node: gs.Node
    bias: int
    known: bool


def fits(layer: Layer, uses: Sequence[Use], shapes: Shapes, walks: Walks) -> list[Fit]:
    """Fits of the compressed network's patches to the original's responses at the same positions, one a group.

    They are over all uses of the layer. Where the input of a use is not known yet, the patches are the original
    network's. The walks advance to what is read.

    Args:
        layer: the layer in the compressed network.
        uses: the nodes that apply it.
        shapes: of the compressed network's tensors.
        walks: the walks.
    """
    sources = _sources(layer, uses, shapes, walks)
    also = [source.shortcut.name for source in sources if source.shortcut]
    walks.compressed.advance([*(source.reads for source in sources if source.use.known), *also])
    unknown = [source.reads_there for source in sources if not source.use.known]
    # An unknown input lies behind layers that are still to be fitted, which the walk must not run past.
    original = walks.original if not unknown else walks.anew()
    original.advance([*(source.answer for source in sources), *unknown, *also])
    images, count = walks.compressed.images, layer.geometry.groups
    patches = sum(len(source.positions) * source.maps for source in sources) * sum(images)
    biases = 1 + max(use.bias for use in uses)
    geometry = layer.geometry.one_group()
    chunks = list(zip(walks.compressed.chunks, original.chunks, images, strict=True))

    def gathered(lane: slice) -> list[Fit]:
        groups = [Fit(geometry.features, patches, biases) for _ in range(count)]
        for source in sources:
            for held, answers, size in chunks[lane]:
                inputs, targets = source.inputs(held, answers), source.target(held, answers)
                parts = zip(groups, np.split(inputs, count, axis=1), np.split(targets, count, axis=1), strict=True)
                for fit, x, target in parts:
                    fit.update(sampled_patches(x, geometry, source.positions), target, size, source.use.bias)
        return groups

    return [reduce(Fit.joined, own) for own in zip(*in_lanes(gathered, geometry.features), strict=True)]


@dataclass(frozen=True)
class _Shortcut:
    """Name of the other term of a residual sum, and the axis permutation that aligns it with the layer's output."""

    name: str
    order: tuple[int, ...]

    def of(self, chunk: Chunk) -> np.ndarray:
        return np.transpose(chunk[self.name], self.order)


@dataclass(frozen=True)
class _Source:
    """Where the patches and targets of one use of a layer are read.

    Attributes:
        use: the use.
        other: its node in the original.
        shortcut: what is subtracted from its target.
        positions: of the patches, as `sample_positions` gives them.
        maps: number of maps that it reads for an image.
        outputs: the channels that the layer still writes.
        left: the channels of the original's input that it still reads.
    """

    use: Use
    other: gs.Node
    shortcut: _Shortcut | None
    positions: np.ndarray
    maps: int
    outputs: slice | np.ndarray
    left: slice | np.ndarray

    @property
    def reads(self) -> str:
        """Name of its input in the compressed network."""
        return str(self.use.node.inputs[0].name)

    @property
    def reads_there(self) -> str:
        """Name of its input in the original."""
        return str(self.other.inputs[0].name)

    @property
    def answer(self) -> str:
        """Name of its output in the original."""
        return str(self.other.outputs[0].name)

    def inputs(self, held: Chunk, answers: Chunk) -> np.ndarray:
        """The input, of what the compressed network holds, or of the original's answers."""
        return held[self.reads] if self.use.known else answers[self.reads_there][:, self.left]

    def target(self, held: Chunk, answers: Chunk) -> np.ndarray:
        """What the layer is to answer at the positions."""
        target = sampled_outputs(answers[self.answer], self.positions)[:, self.outputs]
        if self.shortcut is None:
            return target
        target = target + sampled_outputs(self.shortcut.of(answers), self.positions)[:, self.outputs]
        return target - sampled_outputs(self.shortcut.of(held), self.positions)


def _sources(layer: Layer, uses: Sequence[Use], shapes: Shapes, walks: Walks) -> list[_Source]:
    shortcuts = [_shortcut(use.node, shapes, walks) if use.known else None for use in uses]
    if not all(shortcuts):  # the uses share their weights, so their targets must be of one kind
        shortcuts = [None] * len(uses)
    batch, sources = images_of(walks.context.inputs), []
    for use, shortcut in zip(uses, shortcuts, strict=True):
        shape = shapes[use.node.inputs[0].name]
        size = tuple(d for d in shape[2:] if d is not None)
        sources.append(
            _Source(
                use,
                walks.nodes[use.node.name],
                shortcut,
                sample_positions(layer.geometry, size, walks.plan.settings.positions, walks.rng),
                maps_an_image(shape, len(size), batch),
                walks.kept.outputs.get(use.node.name, slice(None)),  # all channels where it is in no channel group
                walks.kept.inputs_of(layer.name),
            )
        )
    return sources


def _shortcut(node: gs.Node, shapes: Shapes, walks: Walks) -> _Shortcut | None:
    """The other term of the sum that a layer's output enters, if no layer still has to run for it in either network."""
    joined = residual_sum(walks.compressed.model.graph, node, shapes)
    if joined is None:
        return None
    name = str(joined.other.name)
    if any(n.op in OPERATORS for walk in (walks.compressed, walks.original) for n in walk.missing(name)):
        return None
    return _Shortcut(name, joined.order)
