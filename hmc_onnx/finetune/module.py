"""A torch module that executes an ONNX graph, node by node; its parameters are the graph's initializers.

All floats are computed in float32, whatever their type in the model. Integers stay on the CPU, as shapes are computed
from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hmc_onnx.finetune.operators import RULES, Mode, Operator
from passes.core.errors import ModelError
from passes.graph.external import values_of
from passes.graph.protos import opset_of

__all__ = ["GraphModule", "updated"]

FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
# Input positions of the weights that may be trained, by operator; all other constants are fixed.
WEIGHTS: dict[str, Sequence[int]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
STATISTICS = (3, 4)  # input positions of a BatchNormalization's mean and variance
# An Add behind one of these operators adds a bias, which may be trained, too.
WITHOUT_BIAS = ("Conv", "ConvTranspose", "MatMul")


class GraphModule(nn.Module):
    """An ONNX model as a torch module.

    Args:
        proto: the model; it is not changed.
        outputs: names of the tensors to return; default: the graph's outputs. Nodes that they do not need are left out.

    Attributes:
        mode: how the BatchNormalizations behave.
        inputs: names of the graph's inputs, without initializers.
        outputs: names of the tensors that `forward` returns.
        trained: names of the initializers that are parameters.

    Raises:
        ModelError: an operator has no rule, or its rule does not cover the node; the message names the node.
    """

    def __init__(self, proto: onnx.ModelProto, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.mode = Mode()
        self.outputs = list(outputs or (v.name for v in proto.graph.output))
        graph = _needed(proto.graph, self.outputs)
        opset = opset_of(proto) or 1
        self.inputs = [v.name for v in graph.input]
        self._statistics = _statistics(graph)
        self.trained = _weights(graph) - self._statistics
        self._attributes: dict[str, str] = {}  # name of the module's attribute, by the initializer's name
        self._constants: dict[str, Tensor] = {}  # values that stay on the CPU
        for tensor in graph.initializer:
            self._hold(tensor.name, values_of(tensor), tensor.name in self._statistics)
        self._steps = []
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                self._hold(node.output[0], _constant(node), False)
                continue
            self._steps.append((_bound(node, opset, self.mode), list(node.input), list(node.output)))
        self._last = _last_uses([(inputs, outputs) for _, inputs, outputs in self._steps], self.outputs)

    def _hold(self, name: str, value: np.ndarray, statistics: bool) -> None:
        values = torch.from_numpy(np.array(value, np.float32 if _is_float(value) else None))
        attribute = f"value{len(self._attributes)}"
        if name in self.trained:
            self.register_parameter(attribute, nn.Parameter(values))
        elif values.is_floating_point() and (values.dim() or statistics):
            self.register_buffer(attribute, values)
        else:
            self._constants[name] = values
            return
        self._attributes[name] = attribute

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors named by `outputs`, for values of the graph's `inputs` in order."""
        values: dict[str, Any] = dict(self._constants)
        values.update((name, getattr(self, attribute)) for name, attribute in self._attributes.items())
        values.update(zip(self.inputs, inputs, strict=True))
        for (run, reads, writes), dead in zip(self._steps, self._last, strict=True):
            result = run(*(values[name] if name else None for name in reads))
            if len(writes) == 1:
                values[writes[0]] = result
            else:
                values.update((n, v) for n, v in zip(writes, result, strict=True) if n)
            for name in dead:
                del values[name]
        return tuple(values[name] for name in self.outputs)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer that holds an initializer; raises KeyError for a constant that stays on the CPU."""
        return getattr(self, self._attributes[name])

    def values(self) -> dict[str, np.ndarray]:
        """The float32 values of all initializers that training may have changed, by name."""
        names = [n for n in self._attributes if n in self.trained | self._statistics]
        return {n: self.tensor(n).detach().cpu().contiguous().numpy() for n in names}


def _needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> onnx.GraphProto:
    """The part of a graph from which the outputs are computed, with all of its inputs."""
    wanted, nodes = set(outputs), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    part = onnx.GraphProto(output=graph.output)
    part.node.extend(reversed(nodes))
    part.initializer.extend(t for t in graph.initializer if t.name in wanted)
    given = {t.name for t in graph.initializer}
    part.input.extend(v for v in graph.input if v.name not in given)
    return part


def _is_float(value: np.ndarray) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def _constant(node: onnx.NodeProto) -> np.ndarray:
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(value, np.int64)
    raise ModelError(f"node '{node.name or node.output[0]}' (Constant) holds no number: fine-tuning cannot read it")


def _bound(node: onnx.NodeProto, opset: int, mode: Mode) -> Any:
    name = node.name or node.output[0]
    if node.domain not in ("", "ai.onnx") or node.op_type not in RULES:
        operator = f"{node.domain}.{node.op_type}".lstrip(".")
        raise ModelError(
            f"node '{name}' has the operator {operator}, which fine-tuning does not support: "
            "compress without fine-tuning"
        )
    attributes = {a.name: _decoded(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    return RULES[node.op_type](Operator(node.op_type, name, opset, len(node.output), attributes, mode))


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _last_uses(steps: Sequence[tuple[list[str], list[str]]], kept: Sequence[str]) -> list[list[str]]:
    """For each step, the names of the tensors that no later step reads, so that they can be freed."""
    made = {name for _, outputs in steps for name in outputs if name}
    seen = set(kept)
    dead: list[list[str]] = []
    for inputs, outputs in reversed(steps):
        dead.append([n for n in dict.fromkeys([*inputs, *outputs]) if n in made and n not in seen])
        seen.update(dead[-1])
    return dead[::-1]


def _statistics(graph: onnx.GraphProto) -> set[str]:
    return {node.input[i] for node in graph.node if node.op_type == "BatchNormalization" for i in STATISTICS}


def _weights(graph: onnx.GraphProto) -> set[str]:
    """Names of the floating-point initializers that training may change."""
    found: set[str] = set()
    without_bias = {n.output[0] for n in graph.node if n.op_type in WITHOUT_BIAS}
    for node in graph.node:
        places = WEIGHTS.get(node.op_type, ())
        found.update(node.input[i] for i in places if i < len(node.input))
        if node.op_type == "Add" and any(name in without_bias for name in node.input):
            found.update(node.input)
    used_otherwise = {v.name for v in graph.output}
    tensors = {t.name: t for t in graph.initializer}
    return {
        name
        for name in found - used_otherwise
        if name in tensors
        and onnx.TensorProto.DataType.Name(tensors[name].data_type) in FLOATS
        and math.prod(tensors[name].dims)
    }


def updated(proto: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a model with new values in some initializers; the types and all else stay the same.

    Args:
        proto: the model.
        values: the new values by initializer name, each in the initializer's shape; they are cast to its type.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            made = numpy_helper.from_array(np.ascontiguousarray(values[tensor.name].astype(kind)), tensor.name)
            assert list(made.dims) == list(tensor.dims)
            for field in ("float_data", "int32_data", "double_data", "raw_data"):
                tensor.ClearField(field)
            tensor.raw_data = made.raw_data
    return copy
