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


@dataclass(frozen=True)
class DecideIfs(ir.passes.InPlacePass):
    """Replace the Ifs of the main graph that static shapes decide by the branch that is taken.

    A condition is decided if shape inference and constant folding find the same value for it at each batch size of
    `batches`. These are put in for the first dimension of inputs where it is open; other open dimensions stay open.

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
    """The conditions of Ifs, by name, whose value is known and the same at all batch sizes."""
    first, *others = [_conditions(model, batch) for batch in batches]
    return {name: value for name, value in first.items() if all(known.get(name) == value for known in others)}


def _is_computed(node: ir.Node) -> bool:
    return node.op_type == "If" and _condition(node).const_value is None


def _condition(node: ir.Node) -> ir.Value:
    condition = node.inputs[0]
    assert condition is not None  # an If without a condition does not pass the checker
    return condition


def _conditions(model: ir.Model, batch: int) -> dict[str, bool]:
    """The conditions of Ifs, by name, whose value is known at a batch size."""
    proto = ir.to_proto(model)
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value <= 0:
            dims[0].dim_value = batch
    conditions = dict.fromkeys(node.input[0] for node in proto.graph.node if node.op_type == "If")
    present = {value.name for value in proto.graph.output}
    # as outputs the conditions stay; folding would drop each of them together with its If
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in conditions if name not in present)
    try:
        copy = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except onnx.shape_inference.InferenceError:  # the model does not run at this batch
        return {}
    with quiet_folding():
        optimizer.fold_constants(copy, onnx_shape_inference=True)
    values = {v.name: v.const_value for v in copy.graph.outputs if v.name in conditions}
    return {str(name): bool(tensor.numpy()) for name, tensor in values.items() if tensor is not None}
