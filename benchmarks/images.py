"""Images for training: decoded once into one file, and cropped, mirrored and coloured at random by torch."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from passes.core.atomic import replacing

__all__ = ["crops", "decoded", "normalised"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Aspect ratios of crops.
RATIO = (3 / 4, 4 / 3)


def decoded(folder: Path, side: int, work: Path, limit: int | None) -> tuple[np.ndarray, Tensor]:
    """Images as uint8 (N, 3, side, side), mapped from a file that is made once, and labels int64 (N,).

    The shorter side of an image is resized, and the centre cropped.

    Args:
        folder: with a folder for each class; these are numbered in their sorted order.
        side: height and width.
        work: folder for the file.
        limit: number of images of each class; None: all.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    paths = [(path, i) for i, own in enumerate(classes) for path in sorted(own.iterdir())[:limit]]
    cache = work / f"{folder.name}-{side}-{len(paths)}.npy"
    if not cache.exists():
        start = time.perf_counter()
        with replacing(cache) as temporary:
            shape = (len(paths), 3, side, side)
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            for i, (path, _) in enumerate(paths):
                with Image.open(path) as image:
                    image = image.convert("RGB")
                    size = [round(side * n / min(image.size)) for n in image.size]
                    left, top = (round((n - side) / 2) for n in size)
                    image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
                array[i] = np.asarray(image).transpose(2, 0, 1)
            array.flush()
        print(f"{len(paths)} images of {folder} decoded in {time.perf_counter() - start:.0f} s", flush=True)
    return np.load(cache, mmap_mode="r"), torch.tensor([label for _, label in paths])


def normalised(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32, normalised as the preset "imagenet" does."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def crops(images: Tensor, size: int, args: argparse.Namespace, random: torch.Generator) -> Tensor:
    """Random resized crops (N, 3, size, size), half of them mirrored, of other colours where that is asked for."""
    n = len(images)
    draws = torch.rand(8, n, generator=random)
    area, aspect = args.area + (1 - args.area) * draws[0], torch.exp(math.log(RATIO[1]) * (2 * draws[1] - 1))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)  # as shares of the image
    flip = torch.where(draws[2] < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, (1 - width) * (2 * draws[3] - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * draws[4] - 1)
    grid = F.affine_grid(theta.to(images.device), [n, 3, size, size], align_corners=False)
    x = F.grid_sample(normalised(images), grid, padding_mode="reflection", align_corners=False)
    if args.jitter:
        bright, contrast, colour = (1 + args.jitter * (2 * draws[5:] - 1)).to(x.device).view(3, n, 1, 1, 1)
        x = x.mean(1, keepdim=True).lerp(x, colour)
        x = bright * x.mean((1, 2, 3), keepdim=True).lerp(x, contrast)
    return x
