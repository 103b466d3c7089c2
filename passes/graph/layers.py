"""The layers that can be compressed: Conv, ConvTranspose and Gemm with constant weights, all seen as Y = W * X + b.

A Gemm is a Conv without spatial axes. A ConvTranspose is a Conv of stride 1 over an input with zeros between its values
(`calib.measure.moments.sampled_patches`). So one geometry and one weight layout (O, I / groups, *kernel) serve all of
them, and a decomposition that is written for the one works for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from passes.core.declined import Declined, Why
from passes.core.errors import ModelError
from passes.graph.geometry import Geometry
from passes.graph.model import element_type
from passes.graph.naming import UnusedNames, unused_name
from passes.graph.shapes import Shapes

__all__ = [
    "FLOATS",
    "OPERATORS",
    "Geometry",
    "Layer",
    "chain_nodes",
    "in_layout_of",
    "layer_of",
    "own_values",
    "replace_by_chain",
    "why_not_a_layer",
    "write_layer",
]

OPERATORS = ("Conv", "ConvTranspose", "Gemm")
# By name, as bfloat16 is a type of ml_dtypes and not of numpy.
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Layer:
    """A node's linear map: `values` (O, I / groups, *kernel) in the model's own type, `bias` float64 (O,).

    `input` and `output` are the names of the tensors that it reads and writes.
    """

    name: str
    geometry: Geometry
    values: np.ndarray
    bias: np.ndarray
    input: str
    output: str

    @property
    def weight(self) -> np.ndarray:
        """`values` as float64, converted at each call: kept for all layers, they would take twice the model's size."""
        return self.values.astype(np.float64)


def why_not_a_layer(node: gs.Node, shapes: Shapes) -> Declined | None:
    """Why a node of one of the `OPERATORS` cannot be changed; None if it can."""
    found = _objection(node, shapes)
    return None if found is None else Declined(node.name, *found)


def _objection(node: gs.Node, shapes: Shapes) -> tuple[Why, str] | None:
    if any(not isinstance(t, gs.Constant) for t in node.inputs[1:] if not t.is_empty()):
        return Why.COMPUTED_WEIGHTS, "its weights are computed, not constant"
    if node.domain not in (None, "", "ai.onnx"):
        return Why.CUSTOM_DOMAIN, f"it is an operator of the custom domain '{node.domain}'"
    kind = element_type(node.inputs[1]).name
    if kind not in FLOATS:
        return Why.ELEMENT_TYPE, f"its weights are {kind}, not {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
    if not np.isfinite(node.inputs[1].values).all():
        return Why.NOT_FINITE, "some of its weights are NaN or infinite"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return Why.FORM, "its input is transposed (transA = 1)"
        bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        outputs = node.inputs[1].shape[0 if node.attrs.get("transB", 0) else 1]
        if bias is not None and tuple(bias.shape) not in ((outputs,), (1, outputs), (1, 1), (1,), ()):
            return Why.FORM, f"its bias has shape {tuple(bias.shape)}, not one value an output"
        return None
    if node.op == "ConvTranspose":
        if node.attrs.get("group", 1) > 1:
            return Why.GROUPED, "it is a grouped ConvTranspose"
        if node.attrs.get("output_shape") or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return Why.FORM, "its pads follow from the size of its input (auto_pad or output_shape)"
        return None
    if _auto_padded(node) and None in shapes.get(node.inputs[0].name, (None,) * 3)[2:]:
        return Why.UNKNOWN_SIZE, "it has auto_pad and the size of its input is not known"
    return None


def _auto_padded(node: gs.Node) -> bool:
    return node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def layer_of(node: gs.Node, shapes: Shapes) -> Layer:
    """Read a node for which `why_not_a_layer` gives None; `shapes` are needed for auto_pad only."""
    weight = np.asarray(node.inputs[1].values)
    if node.op == "ConvTranspose":
        weight = weight.swapaxes(0, 1)
    bias = np.asarray(node.inputs[2].values, np.float64) if _has_bias(node) else None
    if node.op == "Gemm":
        weight = weight if node.attrs.get("transB", 0) else weight.T
        alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
        weight = weight if alpha == 1 else alpha * weight.astype(np.float64)
        bias = None if bias is None else beta * np.broadcast_to(bias.reshape(-1), len(weight))
        geometry = Geometry(weight.shape[1], weight.shape[0])
    else:
        geometry = _conv_geometry(node, weight.shape, shapes)
    if bias is None:
        bias = np.zeros(len(weight))
    return Layer(node.name, geometry, weight, bias, node.inputs[0].name, node.outputs[0].name)


def _has_bias(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and not node.inputs[2].is_empty()


def _conv_geometry(node: gs.Node, weight_shape: tuple[int, ...], shapes: Shapes) -> Geometry:
    d = len(weight_shape) - 2
    kernel = tuple(weight_shape[2:])
    strides = tuple(node.attrs.get("strides", [1] * d))
    dilations = tuple(node.attrs.get("dilations", [1] * d))
    pads = tuple(node.attrs.get("pads", [0] * 2 * d))
    if node.attrs.get("auto_pad", "NOTSET") == "VALID":
        pads = (0,) * 2 * d
    elif _auto_padded(node):
        sizes = shapes[node.inputs[0].name][2:]
        totals = [
            max((-(-n // s) - 1) * s + dil * (k - 1) + 1 - n, 0)  # type: ignore[operator]
            for n, s, k, dil in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        upper = node.attrs["auto_pad"] == "SAME_UPPER"
        pads = tuple(small + large if upper else large + small)
    groups = node.attrs.get("group", 1)
    geometry = Geometry(weight_shape[1] * groups, weight_shape[0], kernel, strides, pads, dilations, groups)
    if node.op == "ConvTranspose":
        longer = tuple(node.attrs.get("output_padding", [0] * d))
        return replace(geometry, transposed=True, output_padding=longer if any(longer) else ())
    return geometry


def write_layer(
    graph: gs.Graph,
    node: gs.Node,
    weight: np.ndarray,
    bias: np.ndarray,
    also: Sequence[tuple[gs.Node, np.ndarray]] = (),
) -> None:
    """Give a node new values, in its own weight type and layout.

    Args:
        graph: the graph of the node.
        node: a node of one of the `OPERATORS`.
        weight: (O, I / groups, *kernel), float64; O and I may differ from what they were.
        bias: (O,), float64.
        also: further nodes that share the weight, of the same operator and layout, with their biases. Equal biases are
            one initializer.
    """
    dtype = element_type(node.inputs[1])
    entries = [(node, bias), *also]
    nodes = [each for each, _ in entries]
    weight = in_layout_of(node, weight)
    if node.op == "Gemm":
        for each in nodes:
            each.attrs.pop("alpha", None)
            each.attrs.pop("beta", None)
    new_weight = gs.Constant(_own_name(graph, nodes, 1, f"{node.name}:weight"), np.ascontiguousarray(weight, dtype))
    for each in nodes:
        each.inputs[1] = new_weight
    for equal, values in _by_bias(entries):
        new_bias = gs.Constant(_own_name(graph, equal, 2, f"{equal[0].name}:bias"), values.astype(dtype))
        for each in equal:
            if len(each.inputs) > 2:
                each.inputs[2] = new_bias
            else:
                each.inputs.append(new_bias)


def in_layout_of(node: gs.Node, weight: np.ndarray) -> np.ndarray:
    """A weight (O, I / groups, *kernel) with its axes in the order of a node's own weight."""
    if node.op == "ConvTranspose" or (node.op == "Gemm" and not node.attrs.get("transB", 0)):
        return weight.swapaxes(0, 1)
    return weight


def own_values(graph: gs.Graph, node: gs.Node, layer: Layer, also: Sequence[tuple[gs.Node, np.ndarray]] = ()) -> None:
    """Give a node a weight and a bias of its own, with the values of `layer`.

    A node that has both, read by no other node and without alpha and beta, stays as it is. Further nodes that share the
    weight, `also`, go on sharing it; with each is its bias, and nodes of equal biases share that, too.
    """
    entries = [(node, layer.bias), *also]
    alone = _only([each for each, _ in entries], node.inputs[1]) and all(
        len(each.inputs) > 2 and each.inputs[2] is equal[0].inputs[2] and _only(equal, each.inputs[2])
        for equal, _ in _by_bias(entries)
        for each in equal
    )
    plain = all(_has_bias(n) and tuple(n.inputs[2].shape) == (layer.geometry.outputs,) for n, _ in entries)
    if not alone or not plain or {node.attrs.get(scale, 1.0) for scale in ("alpha", "beta")} != {1.0}:
        write_layer(graph, node, layer.weight, layer.bias, also)


def _by_bias(entries: Sequence[tuple[gs.Node, np.ndarray]]) -> list[tuple[list[gs.Node], np.ndarray]]:
    """The nodes of each bias, with the bias, in the order of their first nodes."""
    found: list[tuple[list[gs.Node], np.ndarray]] = []
    for node, bias in entries:
        known = next((nodes for nodes, other in found if np.array_equal(other, bias)), None)
        if known is None:
            found.append(([node], bias))
        else:
            known.append(node)
    return found


def _own_name(graph: gs.Graph, nodes: Sequence[gs.Node], index: int, otherwise: str) -> str:
    """The name of the first node's initializer if none but these nodes read it; else an unused name."""
    node = nodes[0]
    if len(node.inputs) > index and not node.inputs[index].is_empty() and _only(nodes, node.inputs[index]):
        return str(node.inputs[index].name)
    return unused_name(graph, otherwise)


def _only(nodes: Sequence[gs.Node], tensor: gs.Tensor) -> bool:
    """Whether each reader of a tensor is one of these nodes, which read it once each at most."""
    return len(tensor.outputs) <= len(nodes) and all(any(r is node for node in nodes) for r in tensor.outputs)


def chain_nodes(
    graph: gs.Graph, node: gs.Node, links: Sequence[tuple[Geometry, np.ndarray]], bias: np.ndarray
) -> list[gs.Node]:
    """New nodes that apply `links` one after the other to what `node` reads; the last one adds `bias` (O,).

    Each link is (geometry, weight (O, I / groups, *kernel)). The nodes are not in the graph yet, and the last one has
    no output: the caller disconnects `node` and gives its output to the last one.
    """
    nodes: list[gs.Node] = []
    unused = UnusedNames(graph)
    dtype = element_type(node.inputs[1])
    x = node.inputs[0]
    for i, (geometry, weight) in enumerate(links):
        last = i == len(links) - 1
        name = unused(f"{node.name}/{i}")
        y = node.outputs[0] if last else gs.Variable(unused(f"{name}:output"), x.dtype)
        op = node.op if node.op == "Gemm" else "ConvTranspose" if geometry.transposed else "Conv"
        values = np.ascontiguousarray(weight.swapaxes(0, 1) if geometry.transposed else weight, dtype)
        inputs = [x, gs.Constant(unused(f"{name}:weight"), values)]
        if last or (node.op == "Gemm" and graph.opset < 11):  # a Gemm had to have a bias
            own_bias = bias if last else np.zeros(geometry.outputs)
            inputs.append(gs.Constant(unused(f"{name}:bias"), own_bias.astype(dtype)))
        nodes.append(gs.Node(op, name, _attributes(op, geometry), inputs, [] if last else [y]))
        x = y
    return nodes


def _attributes(op: str, geometry: Geometry) -> dict[str, object]:
    if op == "Gemm":
        return {"transB": 1}
    attributes: dict[str, object] = {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.strides),
        "pads": list(geometry.pads),
        "dilations": list(geometry.dilations),
        "group": geometry.groups,
    }
    return attributes | ({"output_padding": list(geometry.output_padding)} if geometry.output_padding else {})


def replace_by_chain(
    graph: gs.Graph,
    node: gs.Node,
    links: Sequence[tuple[Geometry, np.ndarray]],
    bias: np.ndarray,
    also: Sequence[tuple[gs.Node, np.ndarray]] = (),
) -> list[gs.Node]:
    """Replace a node by a chain of nodes, as `chain_nodes` makes it; returns the new nodes.

    Further nodes that share the weight, `also`, each with its bias, are replaced by chains of the same initializers;
    equal biases are one, too.

    Raises:
        ModelError: the node is not in the graph.
    """
    chain = _replace_one(graph, node, links, bias)
    ends = [(chain[-1], bias)]
    for other, own in also:
        new = _replace_one(graph, other, links, own)
        ends.append((new[-1], own))
        for mine, first in zip(new[:-1], chain[:-1], strict=True):
            mine.inputs = [mine.inputs[0], *list(first.inputs)[1:]]
        new[-1].inputs[1] = chain[-1].inputs[1]
    for equal, _ in _by_bias(ends):
        for end in equal[1:]:
            end.inputs[2] = equal[0].inputs[2]
    return chain


def _replace_one(
    graph: gs.Graph, node: gs.Node, links: Sequence[tuple[Geometry, np.ndarray]], bias: np.ndarray
) -> list[gs.Node]:
    position = next((i for i, n in enumerate(graph.nodes) if n is node), None)
    if position is None:
        raise ModelError(f"node '{node.name}' is not in the graph")
    nodes = chain_nodes(graph, node, links, bias)
    output = node.outputs[0]
    node.outputs.clear()
    node.inputs.clear()
    nodes[-1].outputs.append(output)
    graph.nodes[position : position + 1] = nodes
    return nodes
