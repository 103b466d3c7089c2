"""Nodes in topological order, which ONNX demands and onnxruntime does not need."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from passes.core.errors import ModelError
from passes.graph.protos import copy_fields, without_weights
from passes.graph.sparse import inner_graphs

__all__ = ["in_topological_order"]


def in_topological_order(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each node behind those that it reads; the model itself if its nodes are in such an order.

    onnxruntime sorts a graph when it loads it, so unsorted files are in use, such as those that onnxruntime's float16
    converter writes. The model given is not changed, its weights are shared, and nodes that do not
    depend on each other keep their order.

    Raises:
        ModelError: the graph has a cycle.
    """
    if _is_sorted(proto.graph, set()):
        return proto
    result = onnx.ModelProto()
    copy_fields(proto, result, skip={"graph"})
    copy_fields(proto.graph, result.graph, skip={"node"})
    module = ir.from_proto(without_weights(proto, {t.name for t in proto.graph.initializer}))
    before = list(module.graph)
    try:
        module.graph.sort()
    except ValueError as e:
        raise ModelError("the model's nodes form a cycle, so that none of them can be first: export it again") from e
    place = {id(node): i for i, node in enumerate(before)}
    for node in module.graph:
        own = proto.graph.node[place[id(node)]]
        nested = any(inner_graphs(attribute) for attribute in own.attribute)  # its nodes may be sorted, too
        result.graph.node.append(ir.to_proto(node) if nested else own)
    return result


def _is_sorted(graph: onnx.GraphProto, around: set[str]) -> bool:
    """Whether every node reads only what comes before it; `around`: what is computed before the graph."""
    made = {name for node in graph.node for name in node.output}
    known = set(around)
    for node in graph.node:
        if any(name in made and name not in known for name in node.input):
            return False
        for inner in (g for attribute in node.attribute for g in inner_graphs(attribute)):
            read = {name for n in inner.node for name in n.input}
            if any(name in made and name not in known for name in read) or not _is_sorted(inner, known):
                return False
        known.update(node.output)
    return True
