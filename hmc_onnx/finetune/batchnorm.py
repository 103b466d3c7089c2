"""Batch normalisation for training: put behind the Convs of a folded graph, and folded away again; or a graph's own.

A Conv y = W x + b with the mean μ and the variance v of W x over calibration images computes the same as
BN(W x) = γ (W x - μ) / √(v + ε) + β with γ = √(v + ε) and β = b + μ. Each row of W is scaled to norm 1 on the way, and
μ, v and γ with it, so that all layers learn at the same pace. After training the layer is W' = W γ / √(v + ε) and
b' = β - μ γ / √(v + ε).

Within a chain of Convs only the last has one behind it. There too each row is scaled to norm 1, and the columns of the
Conv behind by as much more: factors of a decomposition may differ in size by orders of magnitude, and then a step that
suits the one destroys the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from hmc_onnx.finetune.module import GraphModule

__all__ = ["Inserted", "folded", "has_batchnorm", "reinserted", "restated"]

EPSILON = 1e-5
SMALLEST = 1e-12


@dataclass(frozen=True)
class Inserted:
    """A BatchNormalization that was put behind a Conv: names of its initializers and of the Conv's weight and bias."""

    weight: str
    bias: str
    scale: str
    shift: str
    mean: str
    var: str


def has_batchnorm(proto: onnx.ModelProto) -> bool:
    """Whether a graph has BatchNormalizations of its own."""
    return any(node.op_type == "BatchNormalization" for node in proto.graph.node)


def restated(proto: onnx.ModelProto, batches: Iterable[Tensor]) -> onnx.ModelProto:
    """A copy of a model whose own BatchNormalizations hold the statistics of some images; the function is the same.

    That is γ' = γ √(v' + ε) / √(v + ε) and β' = β + γ (μ' - μ) / √(v + ε). Those are left alone whose initializers
    others read too.

    Args:
        proto: the model, of one input.
        batches: of calibration images, as the model takes them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    own = _own_initializers(copy.graph)
    norms = [
        n for n in copy.graph.node if n.op_type == "BatchNormalization" and all(name in own for name in n.input[1:])
    ]
    moments = _moments(GraphModule(proto, list(dict.fromkeys(n.input[0] for n in norms))), batches) if norms else {}
    for node in norms:
        tensors = [own[n] for n in node.input[1:]]
        scale, shift, mean, var = (numpy_helper.to_array(t).astype(np.float64) for t in tensors)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)  # ONNX's default
        new_mean, new_var = moments[node.input[0]]
        factor = scale / np.sqrt(var + epsilon)
        values = (factor * np.sqrt(new_var + epsilon), shift + factor * (new_mean - mean), new_mean, new_var)
        for tensor, value in zip(tensors, values, strict=True):
            _set(tensor, value)
    return copy


def reinserted(proto: onnx.ModelProto, batches: Iterable[Tensor]) -> tuple[onnx.ModelProto, list[Inserted]]:
    """A copy of a model with a BatchNormalization behind each Conv that has a bias; the function is the same.

    Convs whose weight or bias others read too, or is no initializer, are left alone.

    Args:
        proto: the model, of one input.
        batches: of calibration images, as the model takes them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    own = _own_initializers(graph)
    outputs = {v.name for v in graph.output}
    _balance_chains(graph, own)
    convs = [
        node
        for node in graph.node
        if node.op_type == "Conv"
        and len(node.input) == 3
        and all(name in own for name in node.input[1:])
        and node.output[0] not in outputs
    ]
    moments = _moments(GraphModule(proto, [n.output[0] for n in convs]), batches) if convs else {}
    inserted = []
    for node in convs:
        names = Inserted(
            node.input[1], node.input[2], *(f"{node.output[0]}/{x}" for x in ("scale", "shift", "mean", "var"))
        )
        weight, bias = (numpy_helper.to_array(own[n]).astype(np.float64) for n in (names.weight, names.bias))
        mean, var = moments[node.output[0]]
        norm = _norms(weight)
        values = {
            names.scale: norm * np.sqrt(var / norm**2 + EPSILON),
            names.shift: mean,
            names.mean: (mean - bias) / norm,
            names.var: var / norm**2,
        }
        _set(own[names.weight], weight / _along(norm, weight))
        graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items())
        del node.input[2]
        output, before = node.output[0], f"{node.output[0]}/before"
        node.output[0] = before
        graph.node.insert(
            list(graph.node).index(node) + 1,
            onnx.helper.make_node("BatchNormalization", [before, *values], [output], f"{output}/bn", epsilon=EPSILON),
        )
        inserted.append(names)
    return copy, inserted


def _own_initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Those that one node alone reads, and that are no outputs: changing them changes that node alone."""
    reads = Counter(name for node in graph.node for name in node.input)
    outputs = {v.name for v in graph.output}
    return {t.name: t for t in graph.initializer if reads[t.name] == 1 and t.name not in outputs}


def _balance_chains(graph: onnx.GraphProto, own: Mapping[str, onnx.TensorProto]) -> None:
    """Scale the rows of each Conv whose output goes into one other Conv alone, and that one's columns."""
    reads = Counter(name for node in graph.node for name in node.input)
    outputs = {v.name for v in graph.output}
    readers = {node.input[0]: node for node in graph.node if node.op_type == "Conv"}
    for node in graph.node:
        behind = readers.get(node.output[0])
        if node.op_type != "Conv" or behind is None or len(node.input) != 2 or node.output[0] in outputs:
            continue
        names = (node.input[1], behind.input[1])
        if reads[node.output[0]] != 1 or any(n not in own for n in names):
            continue
        first, second = (numpy_helper.to_array(own[n]).astype(np.float64) for n in names)
        norm = _norms(first)
        groups = len(norm) // second.shape[1]
        columns = norm.reshape(groups, 1, second.shape[1]).repeat(len(second) // groups, 1)  # by the output's group
        _set(own[names[0]], first / _along(norm, first))
        _set(own[names[1]], second * columns.reshape(*second.shape[:2], *[1] * (second.ndim - 2)))


def _norms(weight: np.ndarray) -> np.ndarray:
    """Of each row of a kernel; 1 of a row of zeros, which stays what it is."""
    norms = np.sqrt((weight**2).reshape(len(weight), -1).sum(1))
    return np.where(norms > SMALLEST, norms, 1.0)


def _along(row: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Values of rows, shaped to be multiplied with a kernel."""
    return row.reshape(-1, *[1] * (weight.ndim - 1))


def _set(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


@torch.no_grad()
def _moments(module: GraphModule, batches: Iterable[Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance (float64, one a channel) of each output over images."""
    sums: dict[str, list[np.ndarray]] = {}
    count = 0
    for batch in batches:
        count += len(batch)
        for name, value in zip(module.outputs, module.to(batch.device)(batch), strict=True):
            wide, axes = value.double(), [0, *range(2, value.dim())]
            places = value[0, 0].numel()
            both = [wide.sum(axes) / places, (wide * wide).sum(axes) / places]
            sums[name] = [a + b.cpu().numpy() for a, b in zip(sums.get(name, [0, 0]), both, strict=True)]
    means = {name: [s / count for s in both] for name, both in sums.items()}
    return {name: (m, np.maximum(square - m**2, 0)) for name, (m, square) in means.items()}


def folded(values: Mapping[str, np.ndarray], inserted: Iterable[Inserted]) -> dict[str, np.ndarray]:
    """Values of the original's initializers, with the inserted BatchNormalizations folded into the Convs."""
    result = dict(values)
    for names in inserted:
        scale, shift, mean, var = (
            result.pop(n).astype(np.float64) for n in (names.scale, names.shift, names.mean, names.var)
        )
        weight = result[names.weight].astype(np.float64)
        factor = scale / np.sqrt(var + EPSILON)
        result[names.weight] = weight * _along(factor, weight)
        result[names.bias] = shift - mean * factor
    return result
