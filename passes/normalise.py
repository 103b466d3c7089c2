"""Normalisation: one form for what exporters write in many, exact to float rounding.

1. Weights in Constant nodes become initializers (onnx-ir), sparse ones dense.
2. What can be computed from constants is (onnxscript).
3. Nodes that nothing reads go (onnx-ir), and so do Identity nodes.
4. An initializer that is an output, or is read inside an If or a Loop, is left to them; others get a copy.
5. The Add of a constant, and BatchNormalization, are folded into the Conv before them.
6. MatMul by a constant becomes Gemm where the input has rank 2, with the Add of a constant that follows it.

These folds are here and not onnxscript's rules because those rename the nodes, by which the report
and the plan speak of them, and compute in the model's own precision; these keep the name and use float64.
The Identity nodes are not onnx-ir's pass because it loses the output of an If's branch that hands on a tensor
from outside, and one of two outputs that are the same tensor.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from passes.layers import FLOATS
from passes.model import Model, element_type
from passes.naming import unused_name
from passes.shapes import infer_shapes
from passes.sparse import densify
from passes.subgraph import outer_tensors

__all__ = ["normalise"]


def normalise(proto: onnx.ModelProto) -> Model:
    """The model in normal form, as a graph to rewrite; the proto given is not changed."""
    proto = densify(proto)
    module = ir.from_proto(proto)
    if "ai.onnx" in module.opset_imports:  # the same domain as "", spelt out
        module.opset_imports.setdefault("", module.opset_imports.pop("ai.onnx"))
    _own_constants(module)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(module)
    optimizer.fold_constants(module, input_size_limit=2**31, should_fold=_always_fold)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(module)
    common.RemoveUnusedNodesPass()(module)
    model = Model(ir.to_proto(module))
    del model.header.opset_import[:]
    model.header.opset_import.extend(proto.opset_import)
    remove_identities(model)
    name_nodes(model.graph)
    separate_constants(model)
    fold_bias(model)
    fold_batchnorm(model)
    matmul_to_gemm(model)
    model.graph.cleanup().toposort()
    return model


def _own_constants(module: ir.Model) -> None:
    """Give the Constant nodes tensors of their own: the pass that lifts them renames what is still the caller's."""
    for node in ir.traversal.RecursiveGraphIterator(module.graph):
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(ir.to_proto(node.attributes["value"].as_tensor()))
            node.attributes["value"] = ir.AttrTensor("value", ir.serde.deserialize_tensor(tensor))


def _always_fold(node: ir.Node) -> bool | None:
    """ConstantOfShape, which onnxscript leaves by default, makes the pads of option-A shortcuts."""
    return True if node.op_type == "ConstantOfShape" else None


def remove_identities(model: Model) -> int:
    """Remove every Identity but those from an input or an output to an output; returns how many."""
    outputs = {t.name for t in model.graph.outputs}
    removed = 0
    for node in [n for n in model.graph.nodes if n.op == "Identity"]:
        x, y = node.inputs[0], node.outputs[0]
        kept, dropped = x, y
        if y.name in outputs:
            if not x.inputs or x.name in outputs:
                continue
            kept, dropped = y, x
        node.inputs.clear()
        node.outputs.clear()
        for reader in list(dropped.outputs):
            for i, tensor in enumerate(reader.inputs):
                if tensor is dropped:
                    reader.inputs[i] = kept
        if kept is y:
            maker = x.inputs[0]
            maker.outputs = [y if t is x else t for t in maker.outputs]
        removed += 1
    model.graph.cleanup()
    return removed


def separate_constants(model: Model) -> int:
    """Give the nodes of the main graph copies of initializers that must stay as they are; returns how many.

    These are outputs of the model, and what graphs inside a node read from around it.
    """
    fixed = {t.name for t in model.graph.outputs if isinstance(t, gs.Constant)}
    for node in model.graph.nodes:
        fixed.update(t.name for t in outer_tensors(node) if isinstance(t, gs.Constant))
    copies: dict[str, gs.Constant] = {}
    for node in model.graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if tensor.name in fixed:
                if tensor.name not in copies:
                    name = unused_name(model.graph, f"{tensor.name}:own")
                    copies[tensor.name] = gs.Constant(name, np.asarray(tensor.values))
                node.inputs[i] = copies[tensor.name]
    return len(copies)


def name_nodes(graph: gs.Graph) -> None:
    """Give every node a unique name: its own, or its operator and output where that is missing or taken."""
    taken = {node.name for node in graph.nodes}
    kept: set[str] = set()
    for node in graph.nodes:
        if node.name and node.name not in kept:
            kept.add(node.name)
            continue
        wanted = node.name or f"{node.op}:{node.outputs[0].name if node.outputs else 'no output'}"
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}#{count}"
        taken.add(name)
        node.name = name


def fold_batchnorm(model: Model) -> int:
    """Fold each inference BatchNormalization into the Conv whose output only it reads; returns how many.

    With s = scale / sqrt(var + epsilon), BN(W * x + b) = (s W) * x + s (b - mean) + shift.
    """
    outputs = {t.name for t in model.graph.outputs}
    folded = 0
    for bn in [n for n in model.graph.nodes if n.op == "BatchNormalization"]:
        x = bn.inputs[0]
        conv = x.inputs[0] if len(x.inputs) == 1 else None
        if conv is None or conv.op != "Conv" or len(x.outputs) != 1 or x.name in outputs or len(bn.outputs) != 1:
            continue
        if bn.attrs.get("training_mode", 0) or not all(isinstance(t, gs.Constant) for t in bn.inputs[1:5]):
            continue
        if not _drop_empty_bias(conv) or not _is_float(conv.inputs[1]):
            continue
        scale, shift, mean, variance = (np.asarray(t.values, np.float64) for t in bn.inputs[1:5])
        weight = conv.inputs[1]
        s = scale / np.sqrt(variance + bn.attrs.get("epsilon", 1e-5))
        bias = np.asarray(conv.inputs[2].values, np.float64) if len(conv.inputs) > 2 else 0.0
        values = np.asarray(weight.values)
        by_output = s.reshape(-1, *[1] * (values.ndim - 1))
        scaled = (by_output * values.astype(np.float64)).astype(values.dtype)
        conv.inputs[1] = _constant(model.graph, conv, weight, scaled)
        new_bias = (s * (bias - mean) + shift).astype(values.dtype)
        if len(conv.inputs) > 2:
            conv.inputs[2] = _constant(model.graph, conv, conv.inputs[2], new_bias)
        else:
            conv.inputs.append(gs.Constant(unused_name(model.graph, f"{conv.name}:bias"), new_bias))
        _take_over(conv, bn)
        folded += 1
    model.graph.cleanup()
    return folded


def fold_bias(model: Model) -> int:
    """Fold the Add of a constant, one value a channel, into the bias of the Conv that only it reads; how many."""
    outputs = {t.name for t in model.graph.outputs}
    folded = 0
    for conv in [n for n in model.graph.nodes if n.op == "Conv"]:
        weight, product = conv.inputs[1], conv.outputs[0]
        if product.name in outputs or not _drop_empty_bias(conv) or not _is_float(weight):
            continue
        bias, add = _added(product, weight.shape[0], len(weight.shape))
        if bias is None or add is None:
            continue
        if len(conv.inputs) > 2:
            own = np.asarray(conv.inputs[2].values)
            total = (own.astype(np.float64) + bias.astype(np.float64)).astype(own.dtype)
            conv.inputs[2] = _constant(model.graph, conv, conv.inputs[2], total)
        else:
            conv.inputs.append(gs.Constant(unused_name(model.graph, f"{conv.name}:bias"), bias))
        _take_over(conv, add)
        folded += 1
    model.graph.cleanup()
    return folded


def matmul_to_gemm(model: Model) -> int:
    """x @ W, and x @ W + b, with rank-2 x and constant W (I, O), b (O) become Gemms; returns how many."""
    outputs = {t.name for t in model.graph.outputs}
    matmuls = [n for n in model.graph.nodes if n.op == "MatMul" and isinstance(n.inputs[1], gs.Constant)]
    shapes = infer_shapes(model, _one_image(model)) if matmuls else {}
    fused = 0
    for matmul in matmuls:
        product, weight = matmul.outputs[0], matmul.inputs[1]
        if len(shapes.get(matmul.inputs[0].name, ())) != 2 or weight.values.ndim != 2 or not _is_float(weight):
            continue
        matmul.op = "Gemm"
        fused += 1
        bias, add = _added(product, weight.shape[1], 2)
        if bias is not None and add is not None and product.name not in outputs:
            matmul.inputs.append(gs.Constant(unused_name(model.graph, f"{matmul.name}:bias"), bias))
            _take_over(matmul, add)
        elif model.graph.opset < 11:  # where a Gemm without bias is not one
            zeros = np.zeros(weight.shape[1], element_type(weight))
            matmul.inputs.append(gs.Constant(unused_name(model.graph, f"{matmul.name}:bias"), zeros))
    model.graph.cleanup()
    return fused


def _one_image(model: Model) -> dict[str, tuple[int, ...]]:
    """Input shapes with one image where the batch is open: below opset 14 a Reshape to it has no rank otherwise."""
    return {t.name: (1, *t.shape[1:]) for t in model.graph.inputs if t.shape and not isinstance(t.shape[0], int)}


def _drop_empty_bias(conv: gs.Node) -> bool:
    """Take an input away that is left out; whether the weights are constant."""
    if conv.inputs[-1].is_empty():
        conv.inputs.pop()
    return all(isinstance(t, gs.Constant) for t in conv.inputs[1:])


def _added(product: gs.Tensor, outputs: int, rank: int) -> tuple[np.ndarray | None, gs.Node | None]:
    """What is added to a product of a rank, one value an output (O,), and the Add, if that is all that reads it."""
    if len(product.outputs) != 1 or product.outputs[0].op != "Add":
        return None, None
    add = product.outputs[0]
    bias = next((t for t in add.inputs if isinstance(t, gs.Constant)), None)
    if bias is None or not _is_float(bias) or len(bias.shape) > rank:
        return None, None
    shape = (1,) * (rank - len(bias.shape)) + tuple(bias.shape)
    if shape[1] not in (1, outputs) or any(d != 1 for d in (shape[0], *shape[2:])):
        return None, None
    return np.broadcast_to(np.asarray(bias.values).reshape(-1), outputs).copy(), add


def _take_over(node: gs.Node, reader: gs.Node) -> None:
    """The node gives what its reader gave, which goes."""
    node.outputs = [reader.outputs[0]]
    reader.inputs.clear()
    reader.outputs.clear()


def _is_float(tensor: gs.Constant) -> bool:
    return element_type(tensor).name in FLOATS


def _constant(graph: gs.Graph, node: gs.Node, old: gs.Constant, values: np.ndarray) -> gs.Constant:
    """A constant for `node` in place of `old`: under its name if only this node reads it, else under a new one."""
    return gs.Constant(old.name if len(old.outputs) == 1 else unused_name(graph, f"{old.name}:{node.name}"), values)
