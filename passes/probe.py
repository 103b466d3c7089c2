"""A few links of a network as a model of their own, to be timed as a runtime would run them within the network.

A runtime fuses a Conv with what follows, and may keep activations in a layout of its own, so a Conv between the
model's inputs and outputs is timed wrongly. A probe therefore has a Conv (or Gemm) before and behind its links, and
behind the links what follows them in the network: activations, and the sum with a shortcut. Many probes are branches
of one model: it runs long enough for all threads to be awake, and what else the machine does falls on all alike.
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

__all__ = ["AROUND", "Parts", "Probe", "epilogue", "probe_model"]

# Channels of the input of a probe's model: enough for a runtime that handles them in blocks.
CHANNELS = 16
# What follows a Conv and may be fused with it.
ACTIVATIONS = ("Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
# Last parts of the names of a probe's nodes that are not its links nor what follows them.
AROUND = ("before", "after", "other", "pool", "pool2")
OPSET = 14  # the oldest with all ACTIVATIONS


@dataclass(frozen=True)
class Probe:
    """Links in a chain, the spatial size of their input, the batch, the element type, and what follows them.

    An element type of int8 says that the probe is to be quantised; its model is in float still.

    Its text is its identity: probes of one text are measured once.
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
        """Multiply-accumulates of a run."""
        return chain_macs(self.links, self.size) * self.batch


def _link_text(link: Geometry) -> str:
    parts = [str(link.outputs)]
    if link.kernel:
        parts.append("×".join(map(str, link.kernel)))
    d = len(link.kernel)
    for letter, values, default in (
        ("s", link.strides, (1,) * d),
        ("p", link.pads, (0,) * 2 * d),
        ("d", link.dilations, (1,) * d),
        ("g", (link.groups,), (1,)),
    ):
        if values != default:
            parts.append(letter + ",".join(map(str, values if len(set(values)) > 1 else values[:1])))
    return " ".join(parts)


def epilogue(graph: gs.Graph, node: gs.Node, shapes: Shapes) -> tuple[str, ...]:
    """What follows a layer and may be fused with it: the sum with a shortcut that ends here, then an activation.

    A sum of two Convs is charged to the later one, in graph order.
    """
    found: list[str] = []
    tensor = node.outputs[0]
    while len(tensor.outputs) == 1 and not any(t is tensor for t in graph.outputs):
        reader = tensor.outputs[0]
        others = [t for t in reader.inputs if t is not tensor]
        if reader.op == "Add" and not found and others and _ends_here(graph, others[0], node, shapes):
            found.append("Add")
        elif reader.op in ACTIVATIONS and not (found and found[-1] in ACTIVATIONS):
            found.append(reader.op)
        else:
            break
        tensor = reader.outputs[0]
    return tuple(found)


def _ends_here(graph: gs.Graph, other: gs.Tensor, node: gs.Node, shapes: Shapes) -> bool:
    if not isinstance(other, gs.Variable) or shapes.get(other.name) != shapes.get(node.outputs[0].name):
        return False
    if not other.inputs or other.inputs[0].op != "Conv" or len(other.outputs) > 1:
        return bool(other.inputs)
    return next(n for n in graph.nodes if n is node or n is other.inputs[0]) is not node


class Parts(str, enum.Enum):
    """What a probe's branch is made of, besides the Conv before its links and the one behind them.

    `BARE` is what has to be taken off `SPARE` where a session is timed as a whole: both have a Conv of their own beside
    the branch, that which a sum would add.
    """

    LINKS = "links"
    SPARE = "links and a spare Conv"
    BARE = "a spare Conv"


def probe_model(probes: Sequence[Probe], parts: Parts = Parts.LINKS) -> onnx.ModelProto:
    """A model with a branch for each probe: its nodes are named `i/…`, i the probe's index.

    Args:
        probes: of one batch and element type.
        parts: what the branches are made of.
    """
    builder = _Builder(probes[0])
    for i, probe in enumerate(probes):
        builder.branch(i, probe, parts)
    return builder.model()


class _Builder:
    def __init__(self, probe: Probe) -> None:
        self.batch, self.dtype = probe.batch, probe.dtype
        own = "float32" if probe.dtype in ("bfloat16", "int8") else probe.dtype
        self.type = helper.np_dtype_to_tensor_dtype(np.dtype(own))
        self.rng = np.random.default_rng(0)
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
        """Make the means of a tensor an output, which is small."""
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
        """A Conv or Gemm with random weights that keep the activations' size."""
        weight = self.rng.standard_normal(geometry.weight_shape) * math.sqrt(2 / geometry.features)
        inputs = [x, self.constant(f"{name}:weight", weight), self.constant(f"{name}:bias", np.zeros(geometry.outputs))]
        if not geometry.kernel:
            return self.node("Gemm", name, inputs, transB=1)
        return self.node(
            "Conv",
            name,
            inputs,
            kernel_shape=geometry.kernel,
            strides=geometry.strides,
            pads=geometry.pads,
            dilations=geometry.dilations,
            group=geometry.groups,
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
