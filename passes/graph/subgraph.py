"""Parts of a graph as models of their own: the nodes between some tensors and others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.graph.model import Model, exported

__all__ = ["node_inputs", "nodes_between", "outer_tensors", "redirect", "submodel"]


def nodes_between(graph: gs.Graph, known: Collection[str], wanted: Iterable[str]) -> list[gs.Node]:
    """The nodes, in graph order, that compute the `wanted` tensors from the `known` ones and constants."""
    producer = {t.name: node for node in graph.nodes for t in node.outputs}
    needed: set[int] = set()
    pending = [name for name in wanted if name not in known]
    while pending:
        node = producer.get(pending.pop())
        if node is None or id(node) in needed:
            continue
        needed.add(id(node))
        pending.extend(t.name for t in node_inputs(node) if t.name not in known)
    return [node for node in graph.nodes if id(node) in needed]


def node_inputs(node: gs.Node) -> list[gs.Tensor]:
    """What a node reads, with what its subgraphs read from outside; constants and empty inputs left out."""
    return [t for t in [*node.inputs, *outer_tensors(node)] if isinstance(t, gs.Variable) and t.name]


def outer_tensors(node: gs.Node) -> list[gs.Tensor]:
    """What the graphs inside a node (an If's, a Loop's) read or return of what is around it, constants too."""
    found: list[gs.Tensor] = []
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            made = {t.name for n in value.nodes for t in n.outputs} | {t.name for t in value.inputs}
            read = [t for n in value.nodes for t in [*n.inputs, *outer_tensors(n)]]
            found += [t for t in [*read, *value.outputs] if t.name and t.name not in made]
    return found


def redirect(readers_of: gs.Tensor, to: gs.Tensor) -> None:
    """Let all nodes that read one tensor read another."""
    for reader in list(readers_of.outputs):
        for i, tensor in enumerate(reader.inputs):
            if tensor is readers_of:
                reader.inputs[i] = to


def submodel(
    model: Model,
    nodes: Sequence[gs.Node],
    inputs: Mapping[str, np.dtype],
    outputs: Sequence[str],
    replaceable: Collection[str] = (),
) -> onnx.ModelProto:
    """A model of some of a graph's nodes.

    Args:
        model: where they come from; it is not changed.
        nodes: in topological order.
        inputs: tensors to feed, with their element types; their shapes are left open.
        outputs: tensors to return.
        replaceable: names of initializers that may be fed too, in place of their value.
    """
    tensors = {t.name: t for node in nodes for t in [*node.inputs, *node.outputs]}
    fed = [gs.Variable(name, dtype) for name, dtype in inputs.items()]
    part = gs.Graph(
        list(nodes),
        fed,
        [gs.Variable(name, tensors[name].dtype) for name in outputs],
        opset=model.graph.opset,
        functions=model.graph.functions,
    )
    proto = exported(part)
    del proto.graph.value_info[:], proto.opset_import[:]
    proto.opset_import.extend(model.header.opset_import)
    # below IR version 4 an initializer that is an input is still taken for a constant's default
    proto.ir_version = max(4, model.header.ir_version)
    for tensor in proto.graph.initializer:
        if tensor.name in replaceable:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return proto
