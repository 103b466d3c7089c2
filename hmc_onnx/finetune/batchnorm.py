"""Batch normalisation for training: inserted behind the Convs of a folded graph and folded again, or re-estimated.

Let μ and v be the mean and the variance of W x over calibration images. A Conv y = W x + b then equals
BN(W x) = γ (W x - μ) / √(v + ε) + β with γ = √(v + ε) and β = b + μ. Each row of W is also scaled to norm 1, and μ, v
and γ accordingly, so that all layers learn at the same pace. After training, the layer is W' = W γ / √(v + ε) and
b' = β - μ γ / √(v + ε).

In a chain of Convs (a decomposition), only the last Conv gets a BatchNormalization. Each row of an earlier one is
scaled to norm 1, too, and the matching column of the next Conv by the inverse. Otherwise the factors may differ in size
by orders of magnitude, and no learning rate suits both.
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
    """An inserted BatchNormalization: names of the Conv's weight and bias, and of its own four initializers."""

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
    """A copy of a model whose BatchNormalizations have the statistics μ' and v' of some images.

    The function stays the same, with γ' = γ √(v' + ε) / √(v + ε) and β' = β + γ (μ' - μ) / √(v + ε). A
    BatchNormalization that shares an initializer with another node is left as it is.

    Args:
        proto: the model, with one input.
        batches: calibration images in the form in which the model takes them.
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
    """A copy of a model with a BatchNormalization behind each Conv that has a bias; the function stays the same.

    A Conv is left as it is if its weight or bias is no initializer, or is shared with another node.

    Args:
        proto: the model, with one input.
        batches: calibration images in the form in which the model takes them.

    Returns:
        The copy, and the BatchNormalizations that were inserted.
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
    """The initializers, by name, that exactly one node reads and that are no outputs, so that they can be changed."""
    reads = Counter(name for node in graph.node for name in node.input)
    outputs = {v.name for v in graph.output}
    return {t.name: t for t in graph.initializer if reads[t.name] == 1 and t.name not in outputs}


def _balance_chains(graph: onnx.GraphProto, own: Mapping[str, onnx.TensorProto]) -> None:
    """Scale the rows of each Conv whose only reader is a Conv to norm 1, and the reader's columns by the inverse."""
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
    """Norm of each row of a kernel (O,); 1 for a row of zeros, so that it stays unchanged."""
    norms = np.sqrt((weight**2).reshape(len(weight), -1).sum(1))
    return np.where(norms > SMALLEST, norms, 1.0)


def _along(row: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One value per row (O,), reshaped to broadcast against a kernel (O, I, ...)."""
    return row.reshape(-1, *[1] * (weight.ndim - 1))


def _set(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


@torch.no_grad()
def _moments(module: GraphModule, batches: Iterable[Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of each output over all images and positions, per channel, float64 (C,) each, by name."""
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
    """Values by initializer name, with the inserted BatchNormalizations folded into their Convs."""
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
