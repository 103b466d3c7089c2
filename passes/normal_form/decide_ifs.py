"""Ifs whose condition follows from static shapes are replaced by the branch that is taken.

TorchScript's exporter writes such an If for a `squeeze`, for example: "if axis 2 has length 1".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnxscript import optimizer

from passes.graph.quiet import quiet_folding

__all__ = ["DecideIfs"]


# Operators that pick elements of a shape or hand them on. Where such a result is the same at four batch sizes, it does
# not contain the batch size. This does not hold for a comparison or a division, which may come to the same by chance.
SELECTING = ("Cast", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class DecideIfs(ir.passes.InPlacePass):
    """Replace the Ifs of the main graph that static shapes decide by the branch that is taken.

    A condition is decided if it follows from elements of shapes, and shape inference and constant folding find the same
    value for each of these at each batch size of `batches`. The batch sizes are put in for the first dimension of
    inputs where it is open; other open dimensions stay open.

    Attributes:
        batches: batch sizes at which a condition is evaluated.
    """

    batches: tuple[int, ...] = (1, 2, 7, 64)

    def call(self, model: ir.Model) -> PassResult:
        """The same model, in place, and whether an If was decided."""
        decided = 0
        while any(map(_is_computed, model.graph)):
            agreed = _agreed(model, self.batches)
            found = [node for node in model.graph if _is_computed(node) and _condition(node).name in agreed]
            if not found:
                break
            for i, node in enumerate(found):
                value, name = np.array(agreed[str(_condition(node).name)]), f"{node.outputs[0].name}:condition:{i}"
                condition = ir.Value(name=name, const_value=ir.tensor(value, name=name))
                model.graph.register_initializer(condition)
                node.replace_input_with(0, condition)
            with quiet_folding():
                optimizer.fold_constants(model)  # replaces each decided If by its branch
            decided += len(found)
        return PassResult(model, modified=bool(decided))


def _agreed(model: ir.Model, batches: Sequence[int]) -> dict[str, bool]:
    """The conditions of Ifs, by name, that do not depend on the batch size or on images, with their values."""
    conditions = {str(_condition(node).name): _condition(node) for node in model.graph if _is_computed(node)}
    before: dict[str, ir.Value] = {}
    for condition in conditions.values():
        before |= _before(condition)
    first, *others = [_constants(model, list(before), batch) for batch in batches]
    same = {
        name: value
        for name, value in first.items()
        if all(name in known and np.array_equal(known[name], value) for known in others)
    }
    return {n: bool(same[n]) for n, value in conditions.items() if n in same and _is_independent(value, set(same))}


def _is_computed(node: ir.Node) -> bool:
    return node.op_type == "If" and _condition(node).const_value is None


def _condition(node: ir.Node) -> ir.Value:
    condition = node.inputs[0]
    assert condition is not None  # an If without a condition does not pass the checker
    return condition


def _before(condition: ir.Value) -> dict[str, ir.Value]:
    """A condition and what it is computed from, back to the shapes, by name; nothing if an input's values decide it."""
    found: dict[str, ir.Value] = {}
    pending = [condition]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None and value.const_value is None:
            return {}
        if node is None or str(value.name) in found:
            continue
        found[str(value.name)] = value
        if node.op_type != "Shape":
            pending += [v for v in node.inputs if v is not None]
    return found


def _is_independent(value: ir.Value, same: set[str]) -> bool:
    """Whether a value follows from constants, and from elements of shapes that are the `same` at all batch sizes."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    if node.op_type in SELECTING and value.name in same:
        return True
    return node.op_type != "Shape" and all(v is None or _is_independent(v, same) for v in node.inputs)


def _constants(model: ir.Model, names: Sequence[str], batch: int) -> dict[str, np.ndarray]:
    """The values of those tensors that are known at a batch size, by name."""
    proto = ir.to_proto(model)
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value <= 0:
            dims[0].dim_value = batch
    present = {value.name for value in proto.graph.output}
    # as outputs the tensors stay; folding would drop each of them together with what reads it
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        copy = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except onnx.shape_inference.InferenceError:  # the model does not run at this batch
        return {}
    with quiet_folding():
        optimizer.fold_constants(copy, onnx_shape_inference=True)
    known = {str(v.name): v.const_value for v in copy.graph.outputs if v.name in set(names)}
    return {name: tensor.numpy() for name, tensor in known.items() if tensor is not None}
