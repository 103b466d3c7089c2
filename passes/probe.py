"""A few layers (links) as a model of their own, to be timed as a runtime would run them within the network.

A runtime fuses a Conv with the operators that follow, and may keep activations in a layout of its own, so the time of a
model with nothing but the Conv would be wrong. A probe therefore has a Conv (or Gemm) before and behind its links, and
directly behind the links the operators that follow them in the network: activations, and the sum with a shortcut. Many
probes are branches of one model: then a run is long enough for all threads to be awake, and other load on the machine
affects all probes alike.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from passes.decompose import chain_macs
from passes.decompose.output_svd import pointwise
from passes.graph.layers import Geometry
from passes.graph.shapes import Shapes
from passes.residual import residual_sum

__all__ = ["AROUND", "WITHIN_INT8", "Parts", "Probe", "epilogue", "fed_type", "link_names", "probe_model"]

# Channels of the input of a probe's model: enough for a runtime that handles them in blocks.
CHANNELS = 16
# Operators behind a Conv that a runtime may fuse with it.
ACTIVATIONS = ("Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
# Element type of a probe whose links are float32 between neighbours in INT8, with the casts at its ends.
WITHIN_INT8 = "float32 within int8"
# Last parts of the names of the nodes around a probe's links and epilogue, whose time does not count.
AROUND = ("before", "after", "other", "pool", "pool2")
# Weights repeat so many random numbers, as to draw one for each weight takes nearly as long as to time the probes. The
# number is a prime, so that no two channels are alike.
NOISE = 65_537
OPSET = 14  # the oldest with all ACTIVATIONS


@dataclass(frozen=True)
class Probe:
    """What is timed: a chain of links, and the operators behind it.

    A probe is identified by its text (`str`): probes of equal text are measured once.

    Attributes:
        links: geometries of the chain, first to last.
        size: spatial size of the chain's input.
        batch: number of images.
        dtype: element type. For int8 and `WITHIN_INT8` the model of the probe is float32, and whoever times it
            quantises it: all of it, or all but the links.
        epilogue: operators behind the links, as `epilogue` finds them.
    """

    links: tuple[Geometry, ...]
    size: tuple[int, ...]
    batch: int
    dtype: str = "float32"
    epilogue: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = "×".join(map(str, self.size))
        parts = [f"{self.dtype} {self.batch}×{self.links[0].inputs}{'×' + size if size else ''}"]
        parts += [_link_text(link) for link in self.links]
        return " > ".join([*parts, *self.epilogue])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the links in one run, for the whole batch."""
        return chain_macs(self.links, self.size) * self.batch


def _link_text(link: Geometry) -> str:
    parts = [str(link.outputs), *(["transposed"] if link.transposed else [])]
    if link.kernel:
        parts.append("×".join(map(str, link.kernel)))
    d = len(link.kernel)
    for letter, values, default in (
        ("s", link.strides, (1,) * d),
        ("p", link.pads, (0,) * 2 * d),
        ("d", link.dilations, (1,) * d),
        ("g", (link.groups,), (1,)),
        ("o", link.output_padding or (0,) * d, (0,) * d),
    ):
        if values != default:
            parts.append(letter + ",".join(map(str, values if len(set(values)) > 1 else values[:1])))
    return " ".join(parts)


def epilogue(graph: gs.Graph, node: gs.Node, shapes: Shapes) -> tuple[str, ...]:
    """Operators behind a layer that a runtime may fuse with it, in order: activations, and the residual sum.

    The sum of two Convs' outputs is charged to one of them, the later one in graph order.
    """
    found: list[str] = []
    tensor = node.outputs[0]
    joined = residual_sum(graph, node, shapes)
    end = joined.add if joined is not None and joined.direct and _ends_here(graph, joined.other, node) else None
    while len(tensor.outputs) == 1 and not any(t is tensor for t in graph.outputs):
        reader = tensor.outputs[0]
        if reader is end or (reader.op in ACTIVATIONS and not (found and found[-1] in ACTIVATIONS)):
            found.append(reader.op)
        else:
            break
        tensor = reader.outputs[0]
    return tuple(found)


def _ends_here(graph: gs.Graph, other: gs.Tensor, node: gs.Node) -> bool:
    """Whether a sum is charged to a layer: the other term is computed, and not by a later Conv just for this sum."""
    if not other.inputs or other.inputs[0].op != "Conv" or len(other.outputs) > 1:
        return bool(other.inputs)
    return next(n for n in graph.nodes if n is node or n is other.inputs[0]) is not node


class Parts(str, enum.Enum):
    """What a probe's branch is made of, besides the Conv before its links and the one behind them.

    Where only a whole session can be timed, the time of the links is that of `SPARE` less that of `BARE`. Both have a
    spare Conv beside the branch: the one whose output a sum would add.
    """

    LINKS = "links"
    SPARE = "links and a spare Conv"
    BARE = "a spare Conv"


def probe_model(probes: Sequence[Probe], parts: Parts = Parts.LINKS) -> onnx.ModelProto:
    """A model with a branch for each probe: its nodes are named `i/…`, i the probe's index.

    Args:
        probes: probes of the same batch and element type.
        parts: what the branches are made of.
    """
    builder = _Builder(probes[0])
    for i, probe in enumerate(probes):
        builder.branch(i, probe, parts)
    return builder.model()


def fed_type(dtype: str) -> np.dtype:
    """The element type in which a probe's model has its inputs and weights, for the `dtype` of the probe."""
    return np.dtype("float32" if dtype in ("bfloat16", "int8", WITHIN_INT8) else dtype)


def link_names(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes of a probe's model that are links."""
    return [node.name for node in model.graph.node if "/link" in node.name]


class _Builder:
    def __init__(self, probe: Probe) -> None:
        self.batch, self.dtype = probe.batch, probe.dtype
        self.type = helper.np_dtype_to_tensor_dtype(fed_type(probe.dtype))
        self.rng = np.random.default_rng(0)
        self.noise = self.rng.standard_normal(NOISE, np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []

    def branch(self, i: int, probe: Probe, parts: Parts) -> None:
        first, last, size = probe.links[0], probe.links[-1], probe.size
        x = self.layer(f"{i}/before", self.input(size), pointwise(first, CHANNELS, first.inputs))
        stem, links = x, probe.links if parts is not Parts.BARE else ()
        for link in probe.links:
            size = link.output_size(size)
        other = None
        if parts is not Parts.LINKS or "Add" in probe.epilogue:
            other = self.layer(f"{i}/other", self.input(size), pointwise(last, CHANNELS, last.outputs))
        for n, link in enumerate(links):
            x = self.layer(f"{i}/link{n}", x, link)
        for op in probe.epilogue if links else ():
            x = self.node(op, f"{i}/{op}", [x, other] if op == "Add" and other else [x])
        if not links and other:
            x = other
        x = self.layer(f"{i}/after", x, pointwise(last, last.outputs, CHANNELS))
        self.output(f"{i}/pool", x, CHANNELS, size)
        if not links:
            self.output(f"{i}/pool2", stem, first.inputs, probe.size)
        elif other and "Add" not in probe.epilogue:
            self.output(f"{i}/pool2", other, last.outputs, size)

    def output(self, name: str, x: str, channels: int, size: Sequence[int]) -> None:
        """Make the spatial means of a tensor an output of the model: they are small, so that copying them is fast."""
        if size:
            x = self.node("GlobalAveragePool", name, [x])
        shape = [self.batch, channels, *(1 for _ in size)]
        self.outputs.append(helper.make_tensor_value_info(x, self.type, shape))

    def input(self, size: Sequence[int]) -> str:
        """The model's input of a spatial size, which all its probes share."""
        name = "x" + "x".join(map(str, size))
        if name not in self.inputs:
            self.inputs[name] = helper.make_tensor_value_info(name, self.type, [self.batch, CHANNELS, *size])
        return name

    def layer(self, name: str, x: str, geometry: Geometry) -> str:
        """A layer with random weights, scaled by He's rule so that activations keep their magnitude."""
        noise = np.roll(self.noise, self.rng.integers(NOISE)) * np.float32(math.sqrt(2 / geometry.features))
        weight = np.resize(noise, geometry.weight_shape)
        weight = weight.swapaxes(0, 1) if geometry.transposed else weight
        inputs = [x, self.constant(f"{name}:weight", weight), self.constant(f"{name}:bias", np.zeros(geometry.outputs))]
        if not geometry.kernel:
            return self.node("Gemm", name, inputs, transB=1)
        longer = {"output_padding": geometry.output_padding} if geometry.output_padding else {}
        return self.node(
            "ConvTranspose" if geometry.transposed else "Conv",
            name,
            inputs,
            kernel_shape=geometry.kernel,
            strides=geometry.strides,
            pads=geometry.pads,
            dilations=geometry.dilations,
            group=geometry.groups,
            **longer,
        )

    def constant(self, name: str, values: np.ndarray) -> str:
        dtype = helper.tensor_dtype_to_np_dtype(self.type)
        self.initializers.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        if op == "Clip":
            inputs = [*inputs, self.constant(f"{name}:low", np.array(0)), self.constant(f"{name}:high", np.array(6))]
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "probes", list(self.inputs.values()), self.outputs, initializer=self.initializers
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
