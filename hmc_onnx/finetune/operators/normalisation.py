"""Rules for normalisations. A BatchNormalization uses its stored statistics, or those of the batch (see `Mode`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from hmc_onnx.finetune.operators.registry import Operator, rule

__all__: list[str] = []


@rule("BatchNormalization")
def _batch_normalization(op: Operator) -> Callable[..., Tensor]:
    if op.outputs > 1 or op.get("training_mode", 0):
        raise op.refuse("it was exported in training mode")
    if op.get("spatial", 1) != 1:
        raise op.refuse("its statistics are not one a channel")
    epsilon, mode = op.get("epsilon", 1e-5), op.mode

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if mode.batch_statistics and mode.shared:
            return _over_all_processes(x, (scale, bias), (mean, var), epsilon, mode.momentum)
        return F.batch_norm(x, mean, var, scale, bias, mode.batch_statistics, mode.momentum, epsilon)

    return run


def _over_all_processes(
    x: Tensor, affine: tuple[Tensor, Tensor], running: tuple[Tensor, Tensor], epsilon: float, momentum: float
) -> Tensor:
    """SyncBatchNorm, which torch has for GPUs only; every process must have the same number of images."""
    (scale, bias), (mean, var) = affine, running
    axes = [0, *range(2, x.dim())]
    count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
    wide = x.float()
    sums = all_reduce(torch.stack([wide.sum(axes), (wide * wide).sum(axes)]))
    batch_mean = sums[0] / count
    batch_var = sums[1] / count - batch_mean**2
    with torch.no_grad():
        mean.lerp_(batch_mean, momentum)
        var.lerp_(batch_var * count / max(count - 1, 1), momentum)
    shape = [1, -1] + [1] * (x.dim() - 2)
    factor = scale / torch.sqrt(batch_var + epsilon)
    return (x * factor.view(shape) + (bias - batch_mean * factor).view(shape)).to(x.dtype)


@rule("InstanceNormalization")
def _instance_normalization(op: Operator) -> Callable[..., Tensor]:
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=op.get("epsilon", 1e-5))


@rule("GroupNormalization")
def _group_normalization(op: Operator) -> Callable[..., Tensor]:
    groups = op.get("num_groups")

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if len(scale) != x.shape[1]:  # up to opset 20, scale and bias are per group
            scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
        return F.group_norm(x, groups, scale, bias, op.get("epsilon", 1e-5))

    return run


@rule("LayerNormalization")
def _layer_normalization(op: Operator) -> Callable[..., Tensor]:
    if op.outputs > 1:
        raise op.refuse("its statistics are an output")

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[op.get("axis", -1) % x.dim() :]
        bias = None if bias is None else bias.expand(shape)
        return F.layer_norm(x, shape, scale.expand(shape), bias, op.get("epsilon", 1e-5))

    return run


@rule("LRN")
def _lrn(op: Operator) -> Callable[..., Tensor]:
    size, alpha, beta, k = op.get("size"), op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0)
    if size % 2 == 0:
        raise op.refuse("its size is even")
    return lambda x: F.local_response_norm(x, size, alpha, beta, k)
