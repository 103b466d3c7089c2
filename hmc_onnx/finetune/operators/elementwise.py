"""Rules for elementwise operators (activations, arithmetic, comparisons, casts) and Softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from hmc_onnx.finetune.operators.registry import Operator, rule

__all__ = ["torch_type"]

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Sub": torch.sub,
}

SEVERAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Sum": torch.add,
}


@rule(*UNARY)
def _unary(op: Operator) -> Callable[..., Tensor]:
    return UNARY[op.op]


@rule(*BINARY)
def _binary(op: Operator) -> Callable[..., Tensor]:
    return BINARY[op.op]


@rule(*SEVERAL)
def _several(op: Operator) -> Callable[..., Tensor]:
    combine = SEVERAL[op.op]
    return lambda *values: reduce(combine, values)


@rule("Where")
def _where(op: Operator) -> Callable[..., Tensor]:
    return torch.where


@rule("Dropout")
def _dropout(op: Operator) -> Callable[..., Tensor]:
    if op.outputs > 1:
        raise op.refuse("its mask is an output")
    return lambda x, *_: x  # the identity, as in deployment


@rule("Clip")
def _clip(op: Operator) -> Callable[..., Tensor]:
    low, high = op.get("min"), op.get("max")

    def run(x: Tensor, minimum: Tensor | None = None, maximum: Tensor | None = None) -> Tensor:
        least, most = (low if minimum is None else minimum), (high if maximum is None else maximum)
        if isinstance(least, Tensor) or isinstance(most, Tensor):
            least = None if least is None else torch.as_tensor(least, dtype=x.dtype, device=x.device)
            most = None if most is None else torch.as_tensor(most, dtype=x.dtype, device=x.device)
        return x if least is None and most is None else torch.clamp(x, least, most)

    return run


@rule("LeakyRelu")
def _leaky_relu(op: Operator) -> Callable[..., Tensor]:
    return lambda x: F.leaky_relu(x, op.get("alpha", 0.01))


@rule("PRelu")
def _prelu(op: Operator) -> Callable[..., Tensor]:
    return lambda x, slope: torch.where(x < 0, slope * x, x)


@rule("Elu")
def _elu(op: Operator) -> Callable[..., Tensor]:
    return lambda x: F.elu(x, op.get("alpha", 1.0))


@rule("Selu")
def _selu(op: Operator) -> Callable[..., Tensor]:
    alpha, gamma = op.get("alpha", 1.6732632423543772), op.get("gamma", 1.0507009873554805)
    return lambda x: gamma * F.elu(x, alpha)


@rule("Celu")
def _celu(op: Operator) -> Callable[..., Tensor]:
    return lambda x: F.celu(x, op.get("alpha", 1.0))


@rule("HardSigmoid")
def _hard_sigmoid(op: Operator) -> Callable[..., Tensor]:
    alpha, beta = op.get("alpha", 0.2), op.get("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@rule("Gelu")
def _gelu(op: Operator) -> Callable[..., Tensor]:
    return lambda x: F.gelu(x, approximate=op.get("approximate", "none"))


@rule("Cast")
def _cast(op: Operator) -> Callable[..., Tensor]:
    kind = torch_type(op.get("to"))
    return lambda x: x.to(kind)


@rule("Softmax", "LogSoftmax")
def _softmax(op: Operator) -> Callable[..., Tensor]:
    apply = F.softmax if op.op == "Softmax" else F.log_softmax

    def run(x: Tensor) -> Tensor:
        if op.opset >= 13:
            return apply(x, dim=op.get("axis", -1))
        axis = op.get("axis", 1) % x.dim()
        return apply(x.flatten(axis), dim=-1).reshape(x.shape)  # before opset 13: over all axes from this one on

    return run


def torch_type(element_type: int) -> torch.dtype:
    """torch's type for an element type of ONNX; all floats are computed in float32."""
    if element_type in FLOATS:
        return torch.float32
    return torch.from_numpy(onnx.numpy_helper.to_array(onnx.helper.make_tensor("", element_type, [0], []))).dtype
