"""Rules for Resize and its predecessor Upsample.

Nearest neighbours are selected by index, with ONNX's own coordinates. Linear and cubic interpolation are torch's, so
only the coordinates that torch has are supported. Batch and channels, the first two axes, must keep their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hmc_onnx.finetune.operators.registry import Operator, ints, rule

__all__: list[str] = []

# Values of coordinate_transformation_mode that can be computed, by the value of `mode`.
COORDINATES = {
    "nearest": ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"),
    "linear": ("half_pixel", "pytorch_half_pixel", "align_corners"),
    "cubic": ("half_pixel", "pytorch_half_pixel", "align_corners"),
}
# torch's name of a mode, by ONNX's name and the number of spatial axes.
INTERPOLATIONS = {
    ("linear", 1): "linear",
    ("linear", 2): "bilinear",
    ("linear", 3): "trilinear",
    ("cubic", 2): "bicubic",
}
# What torch does without being told, and the only value of the attribute that can be computed.
FIXED = {"antialias": 0, "cubic_coeff_a": -0.75, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}

# From float32 coordinates in the input, and whether the axis gets shorter, to the coordinates' nearest neighbours.
ROUNDINGS: dict[str, Callable[[np.ndarray, bool], np.ndarray]] = {
    "round_prefer_floor": lambda x, shorter: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x, shorter: np.floor(x + np.float32(0.5)),
    "floor": lambda x, shorter: np.floor(x),
    "ceil": lambda x, shorter: np.ceil(x),
    "before opset 11": lambda x, shorter: np.ceil(x) if shorter else np.floor(x),
}


@rule("Resize", "Upsample")
def _resize(op: Operator) -> Callable[..., Tensor]:
    old = op.op == "Upsample" or op.opset < 11
    mode = op.get("mode", "nearest")
    coordinates = "asymmetric" if old else op.get("coordinate_transformation_mode", "half_pixel")
    rounding = "before opset 11" if old else op.get("nearest_mode", "round_prefer_floor")
    if mode not in COORDINATES:
        raise op.refuse(f"its mode is '{mode}'")
    if coordinates not in COORDINATES[mode]:
        raise op.refuse(f"its coordinates in mode '{mode}' are '{coordinates}'")
    for attribute, value in FIXED.items():
        if op.get(attribute, value) != value:
            raise op.refuse(f"its {attribute} is {op.get(attribute)}")

    def run(x: Tensor, *others: Tensor | None) -> Tensor:
        sizes, scales = _wanted(op, x, others, old)
        if mode == "nearest":
            for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), 2):
                x = _nearest(x, axis, size, scale, coordinates, rounding)
            return x
        if (mode, len(sizes)) not in INTERPOLATIONS:
            raise op.refuse(f"its mode is '{mode}' and its input has {len(sizes)} spatial axes")
        to_one = any(m == 1 < n for m, n in zip(sizes, x.shape[2:], strict=True))
        if coordinates == "pytorch_half_pixel" and to_one:  # ONNX takes the first value, torch one in the middle
            raise op.refuse("its coordinates are 'pytorch_half_pixel' and it makes an axis of length 1")
        name, corners = INTERPOLATIONS[mode, len(sizes)], coordinates == "align_corners"
        if all(s == m / n for s, m, n in zip(scales, sizes, x.shape[2:], strict=True)):
            return F.interpolate(x, sizes, mode=name, align_corners=corners)
        return F.interpolate(x, scale_factor=scales, mode=name, align_corners=corners)

    return run


def _wanted(op: Operator, x: Tensor, others: Sequence[Tensor | None], old: bool) -> tuple[list[int], list[float]]:
    """The sizes of the spatial axes, and the scales that their coordinates are computed with."""
    if op.opset < 9 and op.op == "Upsample":
        given, sizes = op.get("scales"), None
    else:
        scales, sizes = (others[0], None) if old else (*others[1:], None)[:2]
        given = None if scales is None or not scales.numel() else scales.tolist()
    axes = [a % x.dim() for a in op.get("axes") or range(x.dim())]
    lengths = list(x.shape)
    ratios = [1.0] * x.dim()
    for i, axis in enumerate(axes):
        n = x.shape[axis]
        if given is not None:
            ratios[axis], lengths[axis] = given[i], int(np.floor(np.float32(given[i]) * np.float32(n)))
        elif sizes is not None:
            lengths[axis] = ints(sizes)[i]
            ratios[axis] = lengths[axis] / n
    if lengths[:2] != list(x.shape[:2]) or ratios[:2] != [1, 1]:
        raise op.refuse("it resizes batch or channels, the first two axes")
    return lengths[2:], ratios[2:]


def _nearest(x: Tensor, axis: int, size: int, scale: float, coordinates: str, rounding: str) -> Tensor:
    """The tensor with one axis resized to `size` by nearest neighbours, in float32 coordinates as onnxruntime's."""
    n, ratio, at = x.shape[axis], np.float32(scale), np.arange(size, dtype=np.float32)
    if size == n and scale == 1:
        return x
    half = np.float32(0.5)
    if coordinates == "asymmetric":
        at = at / ratio
    elif coordinates == "align_corners":
        at = at * np.float32(n - 1) / np.float32(max(size - 1, 1))
    elif coordinates == "half_pixel" or size > 1:
        at = (at + half) / ratio - half
    found = ROUNDINGS[rounding](at, scale < 1).clip(0, n - 1).astype(np.int64)
    return x.index_select(axis, torch.from_numpy(found).to(x.device))
