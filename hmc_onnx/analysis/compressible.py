"""What can be compressed in a model: its layers and channel groups, and the reasons why others cannot be.

A grouped Conv (also a depthwise one) is never decomposed, so it counts as a layer only if it is in a channel group that
can be pruned. It loses either whole groups together with the layers around it, or equally many outputs of each group.

Nodes that read the same weight (the branches of a siamese network, a head applied at several scales) are the uses of
one layer, which is named after the first of them. They may have different biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from calib.measure.moments import Centred
from passes.channels import ChannelGroup, Channels
from passes.core.declined import Declined
from passes.decompose import chain_macs
from passes.graph.layers import Geometry, Layer

__all__ = ["LAYERS", "Compressible", "CompressibleLayer", "Use", "owners", "readers"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Use:
    """A node that applies a layer.

    Attributes:
        name: name of the node.
        input, output: names of the tensors that it reads and writes.
        size: spatial size of its input.
        position: index of the node in the graph.
        maps: number of inputs of that size that it processes per image.
        bias: index of its bias among the layer's `biases`.
    """

    name: str
    input: str
    output: str
    size: tuple[int, ...]
    position: int
    maps: int = 1
    bias: int = 0


@dataclass
class CompressibleLayer:
    """A layer that can be compressed.

    Attributes:
        layer: its geometry and weights; names and tensors are those of its first node.
        size: spatial size of its input; of the first, where several nodes apply the layer.
        position: index of its first node in the graph.
        input_group, output_group: names of the prunable channel groups that it reads and writes; None if there is none.
        input_classes, output_classes: the class of each input and output channel in these groups, int.
        ends_branch: whether it is the last layer of a residual branch that can be removed.
        maps: number of inputs of that size that it processes per image; more than 1 if crops or frames are folded into
            the batch, or if a Gemm reads a sequence.
        moments: moments of its patches, over all its uses, once they are measured.
        further: the uses behind the first one, in graph order; most layers have none.
        further_biases: the biases (O,), float64, of uses that have another bias than the first one.
    """

    layer: Layer
    size: tuple[int, ...]
    position: int
    input_group: str | None = None
    output_group: str | None = None
    input_classes: np.ndarray | None = None
    output_classes: np.ndarray | None = None
    ends_branch: bool = False
    maps: int = 1
    moments: Centred = field(default_factory=Centred)
    further: tuple[Use, ...] = ()
    further_biases: tuple[np.ndarray, ...] = ()

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        """The different biases of all uses, (O,) each, float64; `Use.bias` says which."""
        return self.layer.bias, *self.further_biases

    @property
    def uses(self) -> tuple[Use, ...]:
        """All uses of the layer, in graph order."""
        layer = self.layer
        return Use(layer.name, layer.input, layer.output, self.size, self.position, self.maps), *self.further

    @property
    def grouped(self) -> bool:
        """Whether it is a Conv of several groups, which is pruned but not decomposed."""
        return self.layer.geometry.groups > 1

    def macs(self, *links: Geometry) -> int:
        """MACs per image of the layer, or of a chain of links that replaces it, over all uses."""
        return sum(chain_macs(links or (self.layer.geometry,), use.size) * use.maps for use in self.uses)


@dataclass(frozen=True)
class Compressible:
    """The layers and channel groups of a model that can be compressed, and the reasons why others cannot.

    Attributes:
        layers: the layers by name, in graph order.
        groups: the channel groups by name; groups that one layer reads concatenated are joined.
        removable: names of the groups that may lose all channels, because a residual branch is removed with them.
        declined: why other layers and groups are left as they are, by the name that reports use.
        declined_inside: the part of `declined` that lies inside other nodes, such as in the branches of an If.
        channels: all channels of the model, in `groups` and in groups that are left as they are.
    """

    layers: dict[str, CompressibleLayer]
    groups: dict[str, ChannelGroup]
    removable: set[str]
    declined: dict[str, Declined]
    declined_inside: dict[str, Declined]
    channels: Channels = field(repr=False)

    def without_removal(self) -> Compressible:
        """A copy in which no residual branch may be removed."""
        return replace(self, removable=set())


def owners(layers: Mapping[str, CompressibleLayer]) -> dict[str, CompressibleLayer]:
    """The layer of each node that applies one, by the node's name."""
    return {use.name: subject for subject in layers.values() for use in subject.uses}


def readers(
    group: ChannelGroup, layers: Mapping[str, CompressibleLayer], role: str = "consumes"
) -> list[tuple[CompressibleLayer, np.ndarray]]:
    """The layers that read a channel group, each once, with the class of each of its input channels.

    Args:
        group: a group whose producers and consumers are all in `layers`.
        layers: the layers by name.
        role: "consumes", or "produces" for the layers that write the group, with the classes of their outputs.
    """
    of = owners(layers)
    found: dict[str, tuple[CompressibleLayer, np.ndarray]] = {}
    for slot, classes in group.members(role):
        subject = of[slot.node.name]
        found.setdefault(subject.layer.name, (subject, classes))
    return list(found.values())
