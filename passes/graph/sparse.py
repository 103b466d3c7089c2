"""Sparse constants made dense: neither onnx-ir nor the passes know sparse tensors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

__all__ = ["densify", "inner_graphs"]


def densify(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with dense tensors in place of its sparse ones: a copy, or the model itself where there are none."""
    if not any(_has_sparse(graph) for graph in _graphs(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in _graphs(copy.graph):
        graph.initializer.extend(_dense(t) for t in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.HasField("sparse_tensor"):
                attribute.t.CopyFrom(_dense(attribute.sparse_tensor))
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    return copy


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in inner_graphs(attribute):
            yield from _graphs(inner)


def inner_graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The graphs that an attribute holds, such as a branch of an If."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _has_sparse(graph: onnx.GraphProto) -> bool:
    attributes = (a for node in graph.node for a in node.attribute)
    return bool(graph.sparse_initializer) or any(a.HasField("sparse_tensor") for a in attributes)


def _dense(tensor: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The dense form of a sparse tensor, whose indices are flat (n,) or coordinates (n, rank)."""
    values, indices = onnx.numpy_helper.to_array(tensor.values), onnx.numpy_helper.to_array(tensor.indices)
    dense = np.zeros(tuple(tensor.dims), values.dtype)
    places = np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)
    dense[places] = values
    return onnx.numpy_helper.from_array(dense, tensor.values.name)
