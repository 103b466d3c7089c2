"""Normalisation: one form for what exporters write in many, exact to float rounding.

1. Calls of model-local functions are inlined (onnx), and Ifs that static shapes decide become the branch taken.
2. Weights in Constant nodes become initializers (onnx-ir), sparse ones dense.
3. What can be computed from constants is (onnxscript, and `fold_constants` for what it leaves).
4. Nodes that nothing reads go (onnx-ir), and so do Identity nodes.
5. An initializer that is an output, or is read inside an If or a Loop, is left to them; others get a copy.
6. BatchNormalization, and constants that multiply or are added to each channel, fold into the Conv before them.
7. MatMul by a constant becomes Gemm where the input is one vector an image, with the Add of a constant behind it.

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

from passes.graph.external import lazy, plain_weights
from passes.graph.layers import FLOATS
from passes.graph.model import Model, element_type
from passes.graph.naming import unused_name
from passes.graph.protos import without_weights
from passes.graph.shapes import infer_shapes
from passes.graph.sparse import densify
from passes.graph.subgraph import outer_tensors, redirect
from passes.normal_form.decide_ifs import decide_ifs
from passes.normal_form.fold_constants import fold_constants
from passes.normal_form.inline_functions import inline_functions

__all__ = ["normalise"]


def normalise(proto: onnx.ModelProto) -> Model:
    """The model in normal form, as a graph to rewrite; the proto given is not changed."""
    proto = inline_functions(densify(proto))
    weights = {t.name: t for t in plain_weights(proto)}
    light = without_weights(proto, weights)
    if proto.ir_version < 4:
        _forget_defaults(light.graph)
    module = ir.from_proto(light)
    if "ai.onnx" in module.opset_imports:  # the same domain as "", spelt out
        module.opset_imports.setdefault("", module.opset_imports.pop("ai.onnx"))
    _own_constants(module)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(module)
    decide_ifs(module)
    optimizer.fold_constants(module, input_size_limit=2**31, should_fold=_always_fold)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(module)
    common.RemoveUnusedNodesPass()(module)
    model = Model(ir.to_proto(module), proto)
    _put_back(model.graph, weights)
    remove_identities(model)
    name_nodes(model.graph)
    fold_constants(model)
    separate_constants(model)
    fold_affine(model)
    matmul_to_gemm(model)
    model.graph.cleanup().toposort()
    return model


def _forget_defaults(graph: onnx.GraphProto) -> None:
    """Take initializers from the inputs, where below IR version 4 they had to be: they are constants all the same."""
    constants = {t.name for t in graph.initializer}
    kept = [v for v in graph.input if v.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)


def _put_back(graph: gs.Graph, weights: dict[str, onnx.TensorProto]) -> None:
    for tensor in [t for t in graph.inputs if t.name in weights]:
        constant = gs.Constant(tensor.name, lazy(weights[tensor.name]))
        for node in list(tensor.outputs):
            node.inputs = [constant if t is tensor else t for t in node.inputs]
    graph.inputs = [t for t in graph.inputs if t.name not in weights]


def _own_constants(module: ir.Model) -> None:
    """Give the Constant nodes tensors of their own: the pass that lifts them renames what is still the caller's."""
    for node in ir.traversal.RecursiveGraphIterator(module.graph):
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(ir.to_proto(node.attributes["value"].as_tensor()))
            node.attributes["value"] = ir.AttrTensor("value", ir.serde.deserialize_tensor(tensor))


def _always_fold(node: ir.Node) -> bool | None:
    """ConstantOfShape, which onnxscript leaves by default, makes the pads of option-A shortcuts.

    BatchNormalization is left to `fold_constants`: its reference implementation errs below opset 14.
    """
    return {"ConstantOfShape": True, "BatchNormalization": False}.get(node.op_type)


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
        redirect(dropped, kept)
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


def fold_affine(model: Model) -> int:
    """Fold what multiplies each channel by a constant or adds one into the Conv that only it reads; returns how many.

    s (W * x + b) + t = (s W) * x + (s b + t), one after the other as long as there are any, through Transposes too.
    """
    outputs = {t.name for t in model.graph.outputs}
    folded = 0
    for conv in [n for n in model.graph.nodes if n.op == "Conv"]:
        if conv.inputs[-1].is_empty():  # a bias left out
            conv.inputs.pop()
        if not all(isinstance(t, gs.Constant) for t in conv.inputs[1:]) or not _is_float(conv.inputs[1]):
            continue
        last, axis = conv, 1  # the Conv, or the last of the Transposes behind it, and where its channels are
        while last.outputs[0].name not in outputs and len(last.outputs[0].outputs) == 1:
            reader = last.outputs[0].outputs[0]
            if reader.op == "Transpose":
                rank = len(conv.inputs[1].shape)
                last, axis = reader, list(reader.attrs.get("perm", range(rank)[::-1])).index(axis)
                continue
            affine = _affine(reader, conv.inputs[1].shape[0], len(conv.inputs[1].shape), axis)
            if affine is None:
                break
            _absorb(model.graph, conv, *affine)
            _take_over(last, reader)
            folded += 1
    model.graph.cleanup()
    return folded


def _affine(node: gs.Node, channels: int, rank: int, axis: int = 1) -> tuple[np.ndarray, np.ndarray] | None:
    """s and t (O,), float64, of a node that gives s x + t; None if it does not.

    Of a BatchNormalization s = scale / sqrt(var + epsilon) and t = shift - s mean.
    """
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "BatchNormalization" and axis == 1:
        given = node.inputs[1:5]
        if node.attrs.get("training_mode", 0) or len(node.outputs) != 1 or not node.attrs.get("spatial", 1):
            return None
        if not all(isinstance(t, gs.Constant) for t in given):
            return None
        scale, shift, mean, variance = (np.asarray(t.values, np.float64) for t in given)
        s = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return s, shift - s * mean
    if node.op in ("Add", "Mul") or (node.op == "Sub" and isinstance(node.inputs[1], gs.Constant)):
        constant = next((t for t in node.inputs if isinstance(t, gs.Constant)), None)
        values = None if constant is None else _by_channel(constant, channels, rank, axis)
        if values is not None:
            return {"Add": (one, values), "Sub": (one, -values), "Mul": (values, zero)}[node.op]
    return None


def _absorb(graph: gs.Graph, conv: gs.Node, s: np.ndarray, t: np.ndarray) -> None:
    weight = conv.inputs[1]
    values = np.asarray(weight.values)
    if (s != 1).any():
        scaled = s.reshape(-1, *[1] * (values.ndim - 1)) * values.astype(np.float64)
        conv.inputs[1] = _constant(graph, conv, weight, scaled.astype(values.dtype))
    if len(conv.inputs) > 2:
        bias = (s * np.asarray(conv.inputs[2].values, np.float64) + t).astype(values.dtype)
        conv.inputs[2] = _constant(graph, conv, conv.inputs[2], bias)
    elif t.any():
        conv.inputs.append(gs.Constant(unused_name(graph, f"{conv.name}:bias"), t.astype(values.dtype)))


def matmul_to_gemm(model: Model) -> int:
    """x @ W, and x @ W + b, with x (N, I) or (N, 1, …, I), constant W (I, O) and b (O) become Gemms; returns how many.

    Around one of more than two axes, as Keras writes a gate, x is flattened and the response reshaped. The axes in
    between must have length 1 for one image and for two: in (T, N, I), where the batch is the second axis, it has for
    one image only.
    """
    outputs = {t.name for t in model.graph.outputs}
    matmuls = [n for n in model.graph.nodes if n.op == "MatMul" and isinstance(n.inputs[1], gs.Constant)]
    shapes, of_two = ({}, {}) if not matmuls else (infer_shapes(model, _with_images(model, n)) for n in (1, 2))
    fused = 0
    for matmul in matmuls:
        product, weight = matmul.outputs[0], matmul.inputs[1]
        shape, other = (known.get(matmul.inputs[0].name, ()) for known in (shapes, of_two))
        between = (*shape[1:-1], *other[1:-1])
        if len(shape) < 2 or any(d != 1 for d in between) or weight.values.ndim != 2 or not _is_float(weight):
            continue
        matmul.op = "Gemm"
        fused += 1
        bias, add = _added(product, weight.shape[1], len(shape))
        if bias is not None and add is not None and product.name not in outputs:
            values = bias.astype(element_type(weight))
            matmul.inputs.append(gs.Constant(unused_name(model.graph, f"{matmul.name}:bias"), values))
            _take_over(matmul, add)
        elif model.graph.opset < 11:  # where a Gemm without bias is not one
            zeros = np.zeros(weight.shape[1], element_type(weight))
            matmul.inputs.append(gs.Constant(unused_name(model.graph, f"{matmul.name}:bias"), zeros))
        if len(shape) > 2:
            _between_reshapes(model.graph, matmul, len(shape), weight.shape[1])
    model.graph.cleanup()
    return fused


def _between_reshapes(graph: gs.Graph, gemm: gs.Node, rank: int, outputs: int) -> None:
    """Flatten what a Gemm reads, and give its response the axes of one in between again."""
    x, y = gemm.inputs[0], gemm.outputs[0]
    flat = gs.Variable(unused_name(graph, f"{gemm.name}:flat"), x.dtype)
    response = gs.Variable(unused_name(graph, f"{gemm.name}:response"), y.dtype)
    target = gs.Constant(unused_name(graph, f"{gemm.name}:shape"), np.array([0, *[1] * (rank - 2), outputs]))
    before = gs.Node("Flatten", unused_name(graph, f"{gemm.name}:flatten"), {"axis": 1}, [x], [flat])
    gemm.inputs[0], gemm.outputs[0] = flat, response
    after = gs.Node("Reshape", unused_name(graph, f"{gemm.name}:reshape"), {}, [response, target], [y])
    at = next(i for i, n in enumerate(graph.nodes) if n is gemm)
    graph.nodes[at : at + 1] = [before, gemm, after]


def _with_images(model: Model, count: int) -> dict[str, tuple[int, ...]]:
    """Input shapes with the given batch where it is open: below opset 14 a Reshape to it has no rank otherwise."""
    return {t.name: (count, *t.shape[1:]) for t in model.graph.inputs if t.shape and not isinstance(t.shape[0], int)}


def _added(product: gs.Tensor, outputs: int, rank: int) -> tuple[np.ndarray | None, gs.Node | None]:
    """What is added to a product, one value a column (O,), float64, and the Add, if that is all that reads it."""
    if len(product.outputs) != 1 or product.outputs[0].op != "Add":
        return None, None
    affine = _affine(product.outputs[0], outputs, rank, rank - 1)
    return (None, None) if affine is None else (affine[1], product.outputs[0])


def _by_channel(constant: gs.Constant, channels: int, rank: int, axis: int) -> np.ndarray | None:
    """A constant as one value for each channel (an axis of `rank`), float64, if that is how it spreads."""
    if not _is_float(constant) or len(constant.shape) > rank:
        return None
    shape = (1,) * (rank - len(constant.shape)) + tuple(constant.shape)
    if shape[axis] not in (1, channels) or any(d != 1 for d in (*shape[:axis], *shape[axis + 1 :])):
        return None
    return np.broadcast_to(np.asarray(constant.values, np.float64).reshape(-1), channels)


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
