"""Rules for Conv, ConvTranspose, Gemm, MatMul and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hmc_onnx.finetune.operators.registry import Operator, rule

__all__: list[str] = []


def _pads(
    op: Operator, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Pads in ONNX's order (all begins, then all ends); for auto_pad they are computed from the input's size."""
    d, auto = len(kernel), op.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return list(op.get("pads") or [0] * 2 * d)
    if auto == "VALID":
        return [0] * 2 * d
    totals = [
        max((-(-n // s) - 1) * s + dil * (k - 1) + 1 - n, 0)
        for n, s, k, dil in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return small + large if auto == "SAME_UPPER" else large + small


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """The tensor with padded spatial axes; `pads` is in ONNX's order, whereas torch's begins with the last axis."""
    d = len(pads) // 2
    return F.pad(x, [p for i in reversed(range(d)) for p in (pads[i], pads[i + d])], value=value)


def _split(x: Tensor, pads: list[int], most: Sequence[float], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input and the padding for torch's function, which can pad both ends equally, up to `most`; else pad here."""
    d = len(pads) // 2
    if pads[:d] == pads[d:] and all(p <= m for p, m in zip(pads, most, strict=False)):
        return x, pads[:d]
    return _padded(x, pads, value), [0] * d


@rule("Conv")
def _conv(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        d = w.dim() - 2
        strides, dilations = op.get("strides") or [1] * d, op.get("dilations") or [1] * d
        x, padding = _split(x, _pads(op, x, w.shape[2:], strides, dilations), [math.inf] * d)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[d - 1]
        return convolve(x, w, b, strides, padding, dilations, op.get("group", 1))

    return run


@rule("ConvTranspose")
def _conv_transpose(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        d = w.dim() - 2
        strides, dilations = op.get("strides") or [1] * d, op.get("dilations") or [1] * d
        longer = op.get("output_padding") or [0] * d
        whole = [  # without pads and output_padding
            (n - 1) * s + dil * (k - 1) + 1
            for n, s, k, dil in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)
        ]
        pads = _cut_off(op, x, strides, [n + m for n, m in zip(whole, longer, strict=True)])
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[d - 1]
        groups = op.get("group", 1)
        torch_takes = all(m < max(s, dil) for m, s, dil in zip(longer, strides, dilations, strict=True))
        if torch_takes and pads[:d] == pads[d:] and min(pads) >= 0:
            return convolve(x, w, b, strides, pads[:d], longer, groups, dilations)
        y = convolve(x, w, None, strides, [0] * d, [0] * d, groups, dilations)
        y = _padded(y, [-p for p in pads[:d]] + [m - p for m, p in zip(longer, pads[d:], strict=True)])
        return y if b is None else y + b.reshape(-1, *[1] * d)

    return run


def _cut_off(op: Operator, x: Tensor, strides: Sequence[int], whole: Sequence[int]) -> list[int]:
    """How much of the whole output of a ConvTranspose is cut off at both ends, in the order of ONNX's pads.

    An end is negative where `output_shape` asks for more than there is.
    """
    d, auto, shape = len(whole), op.get("auto_pad", "NOTSET"), op.get("output_shape")
    if not shape and auto in ("NOTSET", "VALID"):
        return list(op.get("pads") or [0] * 2 * d) if auto == "NOTSET" else [0] * 2 * d
    sizes = shape[-d:] if shape else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    totals = [n - size for n, size in zip(whole, sizes, strict=True)]
    small, large = [max(t, 0) // 2 for t in totals], [t - max(t, 0) // 2 for t in totals]
    if auto == "SAME_UPPER":
        return small + large
    beginnings = [max(n, 0) for n in large]  # what is missing is added at the end
    return beginnings + [t - n for t, n in zip(totals, beginnings, strict=True)]


@rule("Gemm")
def _gemm(op: Operator) -> Callable[..., Tensor]:
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.T if op.get("transA") else a
        y = a @ (b.T if op.get("transB") else b)
        y = y if alpha == 1 else alpha * y
        return y if c is None else y + (c if beta == 1 else beta * c)

    return run


@rule("MatMul")
def _matmul(op: Operator) -> Callable[..., Tensor]:
    return torch.matmul


@rule("MaxPool")
def _max_pool(op: Operator) -> Callable[..., Tensor]:
    if op.outputs > 1:
        raise op.refuse("its indices are an output")
    kernel = op.get("kernel_shape")
    d = len(kernel)
    strides, dilations = op.get("strides") or [1] * d, op.get("dilations") or [1] * d
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[d - 1]

    def run(x: Tensor) -> Tensor:
        pads = _pads(op, x, kernel, strides, dilations)
        x, padding = _split(x, pads, [k // 2 for k in kernel], -math.inf)
        return pool(x, kernel, strides, padding, dilations, bool(op.get("ceil_mode", 0)))

    return run


@rule("AveragePool")
def _average_pool(op: Operator) -> Callable[..., Tensor]:
    kernel = op.get("kernel_shape")
    d = len(kernel)
    strides = op.get("strides") or [1] * d
    if any(k != 1 for k in op.get("dilations") or []):
        raise op.refuse("it has dilations")
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[d - 1]
    ceil, counted = bool(op.get("ceil_mode", 0)), bool(op.get("count_include_pad", 0))

    def run(x: Tensor) -> Tensor:
        pads = _pads(op, x, kernel, strides, [1] * d)
        inner, padding = _split(x, pads, [k // 2 for k in kernel])
        if inner is x or counted:
            return pool(inner, kernel, strides, padding, ceil, counted)
        ones = _padded(torch.ones_like(x[:1, :1]), pads)  # mean: share of a window that is no padding
        return pool(inner, kernel, strides, padding, ceil) / pool(ones, kernel, strides, padding, ceil)

    return run


@rule("GlobalAveragePool")
def _global_average_pool(op: Operator) -> Callable[..., Tensor]:
    return lambda x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@rule("GlobalMaxPool")
def _global_max_pool(op: Operator) -> Callable[..., Tensor]:
    return lambda x: x.amax(dim=tuple(range(2, x.dim())), keepdim=True)
