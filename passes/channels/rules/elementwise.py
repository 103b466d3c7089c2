"""Operators that compute each output value from the input values at its place."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed, Rule, register
from passes.channels.rules.arithmetic import compute_sizes
from passes.channels.rules.parameters import is_given
from passes.channels.tracing import Tracer
from passes.core.declined import Why
from passes.graph.model import constant_value

__all__: list[str] = []


@register("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip", "Cos", "Cosh")
@register("Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu")
@register("Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin")
@register("Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "CastLike")
class Unary(Rule):
    """Passes the channels of its first input on."""

    follows_sizes = True

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Other inputs are bounds, ratios and types, which are the same for all channels."""
        if compute_sizes(node, tracer):
            return
        if any(tracer.stream(t) for t in node.inputs[1:]):
            raise Closed("reads a parameter from an activation")
        tracer.pass_on(node)


@register(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"
)
@register("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor")
class Broadcasting(Rule):
    """Ties the channels of the activations it combines, such as a gate's; constants by channel are pruned with them."""

    follows_sizes = True

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Shapes are aligned at the last axis; `axis` is negative and counts from there."""
        if compute_sizes(node, tracer):
            return
        streams = {i: s for i, t in enumerate(node.inputs) if (s := tracer.stream(t)) is not None}
        if not streams:
            return
        rank = {i: tracer.rank(t) for i, t in enumerate(node.inputs)}
        if any(rank[i] < tracer.rank(node.outputs[0]) for i in streams):
            raise Closed("adds axes in front of the batch")
        axes = {s.axis - rank[i] for i, s in streams.items()}
        wide = {i: s for i, s in streams.items() if len(s.ids) > 1} or streams
        if len(axes) > 1 or len({len(s.ids) for s in wide.values()}) > 1:
            raise Closed("combines activations whose channels do not line up")
        axis, (first, *others) = axes.pop(), wide.values()
        for other in others:
            tracer.tie(first.ids, other.ids)
        for i, stream in streams.items():
            if i not in wide:  # a single channel that gates all of the others, or is added to them
                tracer.close(stream.ids, f"{node.op} node '{node.name}' broadcasts it over other channels")
        for i, tensor in enumerate(node.inputs):
            if i not in streams:
                self._plain(node, i, tensor, axis, first.ids, tracer)
        tracer.emit(node.outputs[0], tracer.rank(node.outputs[0]) + axis, first.ids)

    def _plain(self, node: gs.Node, index: int, tensor: gs.Tensor, axis: int, ids: np.ndarray, tracer: Tracer) -> None:
        """An input without channels of its own."""
        shape = tracer.shapes.get(tensor.name)
        if shape is None:
            raise Closed(f"combines channels with '{tensor.name}', of unknown shape", Why.UNKNOWN_SIZE)
        extent = shape[axis] if len(shape) >= -axis else 1
        if extent == 1:
            return
        if extent != len(ids):
            raise Closed(f"broadcasts one channel over '{tensor.name}'")
        if constant_value(tensor) is None:
            raise Closed(f"combines channels with '{tensor.name}', which cannot lose any")
        if not isinstance(tensor, gs.Constant):
            raise Closed(f"reads '{tensor.name}' from a Constant node: normalise first")
        tracer.slot(node, index, len(shape) + axis, "follows", ids)


@register("QuantizeLinear", "DequantizeLinear")
class Quantize(Rule):
    """Passes channels on; scales and zero points by channel are pruned with them."""

    def trace(self, node: gs.Node, tracer: Tracer) -> None:
        """Parameters are scalars, or have one value for each entry of `axis`."""
        stream = tracer.stream(node.inputs[0])
        if stream is None:
            return
        axis = node.attrs.get("axis", 1) % tracer.rank(node.inputs[0])
        for index in (1, 2):
            if not is_given(node, index):
                continue
            if not isinstance(node.inputs[index], gs.Constant):
                raise Closed("computes its scale or zero point", Why.COMPUTED_WEIGHTS)
            shape = node.inputs[index].shape
            if len(shape) > 1:
                raise Closed("works on blocks of channels")
            if len(shape) == 1 and axis == stream.axis and shape[0] > 1:
                tracer.slot(node, index, 0, "follows", stream.ids)
        tracer.pass_on(node)
