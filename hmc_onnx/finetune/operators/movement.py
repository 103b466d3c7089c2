"""Rules for operators that move, cut and join values, for reductions, and for computing shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from hmc_onnx.finetune.operators.registry import Operator, ints, rule

__all__: list[str] = []


@rule("Flatten")
def _flatten(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        axis = op.get("axis", 1)
        axis = axis + x.dim() if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:axis]), -1)

    return run


@rule("Reshape")
def _reshape(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = ints(shape)
        if not op.get("allowzero", 0):
            wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
        return x.reshape(wanted)

    return run


@rule("Transpose")
def _transpose(op: Operator) -> Callable[..., Tensor]:
    return lambda x: x.permute(op.get("perm") or list(range(x.dim()))[::-1])


def _axes(op: Operator, given: Tensor | None) -> list[int] | None:
    """The axes: an attribute in older opsets, an input in newer ones."""
    return op.get("axes") if given is None else ints(given)


@rule("Squeeze")
def _squeeze(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        which = _axes(op, axes)
        return x.squeeze() if which is None else x.squeeze(tuple(which))

    return run


@rule("Unsqueeze")
def _unsqueeze(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        which = _axes(op, axes) or []
        rank = x.dim() + len(which)
        for axis in sorted(a % rank for a in which):
            x = x.unsqueeze(axis)
        return x

    return run


@rule("Concat")
def _concat(op: Operator) -> Callable[..., Tensor]:
    return lambda *values: torch.cat(values, dim=op.get("axis", 1))


@rule("Split")
def _split(op: Operator) -> Callable[..., tuple[Tensor, ...]]:
    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        axis = op.get("axis", 0)
        wanted = op.get("split") if sizes is None else ints(sizes)
        return x.split(wanted or -(-x.shape[axis] // op.outputs), dim=axis)

    return run


@rule("Slice")
def _slice(op: Operator) -> Callable[..., Tensor]:
    def run(
        x: Tensor,
        starts: Tensor | None = None,
        ends: Tensor | None = None,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        begin = op.get("starts") if starts is None else ints(starts)
        end = op.get("ends") if ends is None else ints(ends)
        which = _axes(op, axes) or range(len(begin))
        for axis, a, b, step in zip(which, begin, end, [1] * len(begin) if steps is None else ints(steps), strict=True):
            indices = range(x.shape[axis])[slice(a, b, step)]
            if step > 0:
                at = [slice(None)] * x.dim()
                at[axis] = slice(indices.start, max(indices.stop, indices.start), step)
                x = x[tuple(at)]
            else:
                x = x.index_select(axis, torch.tensor(list(indices), device=x.device))
        return x

    return run


@rule("Pad")
def _pad(op: Operator) -> Callable[..., Tensor]:
    mode = op.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise op.refuse(f"its mode is '{mode}'")

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts = op.get("pads") if pads is None else ints(pads)
        which = list(range(x.dim())) if axes is None else [a % x.dim() for a in ints(axes)]
        by_axis = {axis: (amounts[i], amounts[i + len(which)]) for i, axis in enumerate(which)}
        least = min((axis for axis, both in by_axis.items() if any(both)), default=x.dim() - 1)
        ordered = [p for axis in range(x.dim() - 1, least - 1, -1) for p in by_axis.get(axis, (0, 0))]
        if mode != "constant":
            return F.pad(x, ordered, "reflect" if mode == "reflect" else "replicate")
        return F.pad(x, ordered, value=op.get("value", 0.0) if value is None else value.item())

    return run


@rule("Gather")
def _gather(op: Operator) -> Callable[..., Tensor]:
    def run(x: Tensor, indices: Tensor) -> Tensor:
        axis = op.get("axis", 0) % x.dim()
        flat = indices.reshape(-1).to(x.device)
        found = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
        return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))

    return run


@rule("Expand")
def _expand(op: Operator) -> Callable[..., Tensor]:
    return lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


@rule("Tile")
def _tile(op: Operator) -> Callable[..., Tensor]:
    return lambda x, repeats: x.tile(ints(repeats))


@rule("Shape")
def _shape(op: Operator) -> Callable[..., Tensor]:
    return lambda x: torch.tensor(x.shape[op.get("start", 0) : op.get("end")], dtype=torch.int64)


@rule("Size")
def _size(op: Operator) -> Callable[..., Tensor]:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@rule("ConstantOfShape")
def _constant_of_shape(op: Operator) -> Callable[..., Tensor]:
    value = onnx.numpy_helper.to_array(op.get("value")) if op.get("value") else np.zeros(1, np.float32)
    kind = torch.from_numpy(value.copy()).dtype
    return lambda shape: torch.full(ints(shape), value.item(), dtype=torch.float32 if kind.is_floating_point else kind)


@rule("Range")
def _range(op: Operator) -> Callable[..., Tensor]:
    return lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@rule("ArgMax")
def _arg_max(op: Operator) -> Callable[..., Tensor]:
    return lambda x: x.argmax(op.get("axis", 0), keepdim=bool(op.get("keepdims", 1)))


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceProd": torch.prod,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": lambda x, dim, keepdim: (x * x).sum(dim, keepdim),
}

# What a reduction over no axes does to each element; the other reductions leave it unchanged.
OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {"ReduceL2": torch.abs, "ReduceSumSquare": torch.square}


@rule(*REDUCTIONS)
def _reduce(op: Operator) -> Callable[..., Tensor]:
    reduction, keep = REDUCTIONS[op.op], bool(op.get("keepdims", 1))

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        which = _axes(op, axes)
        if not which:
            if op.get("noop_with_empty_axes", 0):
                return OF_ONE.get(op.op, lambda value: value)(x)
            which = list(range(x.dim()))
        if op.op == "ReduceProd":  # torch's takes one axis
            for axis in sorted((a % x.dim() for a in which), reverse=True):
                x = torch.prod(x, axis, keepdim=keep)
            return x
        return reduction(x, dim=tuple(which), keepdim=keep)

    return run
