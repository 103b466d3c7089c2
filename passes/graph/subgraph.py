"""Parts of a graph: the nodes between given tensors, cut out as a model of their own."""

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
    """The tensors that a node and its subgraphs read, without constants and omitted inputs."""
    return [t for t in [*node.inputs, *outer_tensors(node)] if isinstance(t, gs.Variable) and t.name]


def outer_tensors(node: gs.Node) -> list[gs.Tensor]:
    """The tensors of the surrounding graph, constants too, that subgraphs of a node (an If, a Loop) read or return."""
    found: list[gs.Tensor] = []
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            made = {t.name for n in value.nodes for t in n.outputs} | {t.name for t in value.inputs}
            read = [t for n in value.nodes for t in [*n.inputs, *outer_tensors(n)]]
            found += [t for t in [*read, *value.outputs] if t.name and t.name not in made]
    return found


def redirect(readers_of: gs.Tensor, to: gs.Tensor) -> None:
    """Make all nodes that read the tensor `readers_of` read `to` instead; outputs of the graph are not changed."""
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
        model: the model of the nodes; it is not changed.
        nodes: the nodes, in topological order.
        inputs: element types of the tensors to feed, by name; their shapes are left open.
        outputs: names of the tensors to return.
        replaceable: names of initializers that become inputs, too, so that other values can be fed in their place.
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
    # below IR version 4 runtimes take an initializer for constant, even if it is an input
    proto.ir_version = max(4, model.header.ir_version)
    for tensor in proto.graph.initializer:
        if tensor.name in replaceable:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return proto
