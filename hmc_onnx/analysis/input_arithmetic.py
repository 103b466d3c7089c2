"""Arithmetic with constants at the beginning of a graph, such as normalisation that was exported with the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["InputArithmetic", "input_arithmetic"]

_PASSED = {"Cast", "Identity", "Transpose"}
_AFFINE = {"Add", "Sub", "Mul", "Div"}


@dataclass(frozen=True)
class InputArithmetic:
    """An input x becomes `factor` * x + `shift` before the first operator of another kind.

    Attributes:
        operators: types of the arithmetic operators in order; those that change no value are left out.
        factor: float64, one for each channel, or one for all.
        shift: float64, one for each channel, or one for all.
    """

    operators: tuple[str, ...]
    factor: np.ndarray
    shift: np.ndarray

    @property
    def mean(self) -> float:
        """The input value that becomes 0, as a mean over the channels."""
        return float(np.mean(-self.shift / self.factor))


def input_arithmetic(proto: onnx.ModelProto, name: str) -> InputArithmetic:
    """Find the arithmetic with constants that is applied to an input first; `operators` is empty if there is none.

    The search ends at an operator of another kind, and at a tensor with several readers.
    """
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for read in node.input:
            readers.setdefault(read, []).append(node)
    found: list[str] = []
    factor, shift = np.ones(1), np.zeros(1)
    while len(readers.get(name, [])) == 1:
        (node,) = readers[name]
        if node.op_type in _AFFINE and len(node.input) == 2:
            on_left = node.input[0] == name
            constant = constants.get(node.input[1 if on_left else 0])
            if constant is None:
                break
            value = numpy_helper.to_array(constant).astype(np.float64).reshape(-1)
            step = _step(node.op_type, on_left, value)
            if step is None or not all(len(v) in (1, len(value)) for v in (factor, shift) if len(value) > 1):
                break
            factor, shift = factor * step[0], shift * step[0] + step[1]
            found.append(node.op_type)
        elif node.op_type not in _PASSED:
            break
        name = node.output[0]
    return InputArithmetic(tuple(found), factor, shift)


def _step(op: str, on_left: bool, value: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and shift of one operator; None if it is not affine in the input, or multiplies it by zero."""
    one, zero = np.ones_like(value), np.zeros_like(value)
    if op == "Add":
        return one, value
    if op == "Sub":
        return (one, -value) if on_left else (-one, value)
    if not value.all() or (op == "Div" and not on_left):
        return None
    return (value if op == "Mul" else 1 / value), zero
