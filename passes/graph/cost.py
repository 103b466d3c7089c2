"""Multiply-accumulates, parameters and bytes of each node, for one image.

MACs are counted for Conv, ConvTranspose, Gemm and MatMul, as the literature does; the other operators'
element-wise work is left out, and so is what runs inside an If, a Loop or a Scan, as how often it runs depends on
values. Parameters are the floating-point constants that a node reads, those inside an If, a Loop or a Scan too. In a
quantised model they are the integer constants that DequantizeLinear converts; scales and zero points are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from passes.graph.model import Model, element_type
from passes.graph.shapes import Shape, Shapes, batch_one

__all__ = ["Cost", "activation_bytes", "costs", "images_of", "maps_an_image", "total"]


@dataclass(frozen=True)
class Cost:
    """MACs for one image, parameters, and their bytes in the file."""

    macs: int = 0
    parameters: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.parameters + other.parameters, self.bytes + other.bytes)


def costs(model: Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Cost]:
    """Cost of each node by name, with `inputs` (default: `model.sizes`) as input shapes.

    A constant that several nodes share counts at its first reader only; nodes that share a name add up.
    """
    inputs = dict(inputs or model.sizes or batch_one(model))
    batch = images_of(inputs)
    shapes = model.shapes_at(inputs)
    seen: set[str] = set()
    table: dict[str, Cost] = {}
    for node in model.graph.nodes:
        parameters = size = 0
        for tensor in _weights(node):
            if isinstance(tensor, gs.Constant) and tensor.name not in seen:
                seen.add(tensor.name)
                count = math.prod(tensor.shape)
                parameters += count
                size += count * element_type(tensor).itemsize
        cost = Cost(_macs(node, shapes) // batch, parameters, size)
        table[node.name] = table.get(node.name, Cost()) + cost
    return table


def activation_bytes(model: Model, inputs: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of all activations of one image together, in float32; those of unknown size are left out.

    Args:
        model: the model.
        inputs: shapes of its inputs.
    """
    shapes = model.shapes_at(dict(inputs))
    known = [shapes.get(t.name, (None,)) for node in model.graph.nodes for t in node.outputs]
    numbers = sum(math.prod(d for d in shape if d is not None) for shape in known if None not in shape)
    return 4 * numbers // images_of(inputs)


def images_of(inputs: Mapping[str, tuple[int, ...]]) -> int:
    """The batch size that input shapes have: the first dimension of the first input with any."""
    return next((shape[0] for shape in inputs.values() if shape), 1)


def maps_an_image(shape: Shape, spatial: int, images: int) -> int:
    """How often a layer is applied for one image: crops, frames or sequence steps may be folded into its batch axis.

    Args:
        shape: shape of the layer's input: (maps, channels, *spatial), or (…, channels) for a Gemm.
        spatial: number of spatial axes.
        images: number of images in the batch that has this shape.
    """
    leading = shape[: len(shape) - 1 - spatial]
    return max(math.prod(leading) // images, 1) if None not in leading else 1  # type: ignore[arg-type]


def total(model: Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Cost:
    """Cost of the whole model."""
    return sum(costs(model, inputs).values(), Cost())


def _weights(node: gs.Node) -> list[gs.Tensor]:
    """The inputs of a node, and of the nodes in its subgraphs, that count as parameters if they are constant."""
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return list(node.inputs[:1])
    own = [t for t in node.inputs if isinstance(t, gs.Constant) and _is_float(t)]
    return own + [t for graph in node.subgraphs() for inner in graph.nodes for t in _weights(inner)]


def _is_float(tensor: gs.Constant) -> bool:
    return "float" in element_type(tensor).name  # bfloat16 is not of numpy's kind "f"


def _macs(node: gs.Node, shapes: Shapes) -> int:
    """Number of output values × inputs summed up in each, for the whole batch; 0 where a shape is unknown."""
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    x, w = (shapes.get(t.name) for t in node.inputs[:2])
    y = shapes.get(node.outputs[0].name)
    if x is None or w is None or y is None or None in x or None in w or None in y:
        return 0
    if node.op == "Conv":
        return math.prod(y) * math.prod(w[1:])  # type: ignore[arg-type]
    if node.op == "ConvTranspose":
        return math.prod(x) * math.prod(w[1:])  # type: ignore[arg-type]
    inner = x[0] if node.attrs.get("transA", 0) else x[-1]
    return math.prod(y) * inner  # type: ignore[arg-type, operator]
