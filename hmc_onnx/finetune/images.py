"""Training images: shuffled, augmented and mixed, in batches.

The random numbers of an image depend only on the seed, the epoch and its position in the epoch. So several processes,
or a run that continues after an interruption, see the same images as one uninterrupted process.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calib.data.preprocess import Preprocess
from calib.data.sources import Source

__all__ = ["Augmentation", "Batch", "TrainingImages"]

Augmentation = Literal["crop", "resized", "flip", "none"]

# Largest shift of "crop", as a share of the side.
SHIFT = 1 / 8
# Images are held on the device if they take at most this many bytes; else they are read again for each batch.
HELD = 4 * 10**9
AHEAD = 4  # batches that are read ahead


class Batch(NamedTuple):
    """A batch: images, float32 (N, ...), and their classes, int64 (N,), or None.

    With mixup, `other` has the classes of the second image of each mix, int64 (N,), and `share` its weight, float32
    (N,).
    """

    images: Tensor
    labels: Tensor | None
    other: Tensor | None = None
    share: Tensor | None = None


@dataclass(frozen=True)
class TrainingImages:
    """A subset of a source's images, with the augmentation for training.

    Attributes:
        source: see `calib.data.sources`.
        indices: indices of the subset in the source, (N,).
        preprocess: the network's preprocessing in deployment.
        augmentation: "crop": a random shift by up to an eighth of the side, padded with black, and a random horizontal
            flip; "resized": a random resized crop and a flip; "flip": the flip only; "none".
        mixup: largest weight of the second image in mixup (arXiv:1710.09412); 0: no mixup. The original has not
            memorised mixed images, so its outputs for them are more informative (arXiv:2106.05237).
        seed: seed of the order and the augmentation.
        device: device of the batches.
        labelled: whether batches have the source's labels, if it has any.
    """

    source: Source
    indices: np.ndarray
    preprocess: Preprocess
    augmentation: Augmentation
    mixup: float
    seed: int
    device: torch.device
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, count: int) -> TrainingImages:
        """At most `count` of the images, evenly spaced in the source, because neighbours are often of one class."""
        places = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)
        return replace(self, indices=self.indices[places])

    def plain(self, size: int) -> Iterator[Batch]:
        """Yield all images in order, without augmentation, in batches of up to `size`."""
        for start in range(0, len(self), size):
            at = self.indices[start : start + size]
            images = torch.from_numpy(self.source.take(at, self.preprocess)).to(self.device)
            yield Batch(images, self._labels(at))

    def batches(self, size: int, epoch: int, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yield one process's part of each batch of an epoch; a last batch of fewer than `size` images is left out.

        Mixup is applied to the whole batch before it is divided. With fewer images than processes, some processes get
        no batches.

        Args:
            size: images per batch, over all processes.
            epoch: number of the epoch.
            rank: index of the process.
            processes: number of processes; their parts are consecutive, and equal if it divides `size`.
        """
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self))
        draws = rng.random((len(self), 6), np.float32)
        size = min(size, len(self))
        begin, end = (size * r // processes for r in (rank, rank + 1))
        if begin == end:
            return
        # include the mixup partners of the part's first and last image
        low, high = begin - begin % 2, min(end + end % 2, size)
        own = slice(begin - low, end - low)
        parts = [slice(i * size + low, i * size + high) for i in range(len(self) // size)]

        def load(part: slice) -> Batch:
            whole = self._batch(order[part], draws[part])
            return Batch(*(None if values is None else values[own] for values in whole))

        if self._resident is not None:
            yield from map(load, parts)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(load, part) for part in parts[:AHEAD]]
            for part in [*parts[AHEAD:], *[None] * min(AHEAD, len(parts))]:
                batch = waiting.pop(0).result()
                if part is not None:
                    waiting.append(reader.submit(load, part))
                yield batch

    def _batch(self, places: np.ndarray, draws: np.ndarray) -> Batch:
        at = self.indices[places]
        if self._resident is not None:
            images = self._resident[torch.from_numpy(places).to(self.device)]
        else:
            wanted = draws[:, :4] if self.augmentation == "resized" else None
            images = torch.from_numpy(self.source.take(at, self.preprocess, wanted)).to(self.device)
        drawn = torch.from_numpy(draws).to(self.device)
        return self._mixed(Batch(self._changed(images, drawn), self._labels(at)), self.mixup * drawn[:, 5])

    def _mixed(self, batch: Batch, share: Tensor) -> Batch:
        """Mix each image with its neighbour: the first with the second, the third with the fourth, and so on."""
        if not self.mixup:
            return batch
        places = torch.arange(len(share), device=self.device)
        other = (places ^ 1).clamp(max=len(share) - 1)
        along = share.view(-1, *[1] * (batch.images.dim() - 1))
        labels = None if batch.labels is None else batch.labels[other]
        return Batch(torch.lerp(batch.images, batch.images[other], along), batch.labels, labels, share)

    @cached_property
    def _resident(self) -> Tensor | None:
        """All images on the device; None where they are read batch by batch."""
        one = self.source.take(self.indices[:1], self.preprocess)
        if self.augmentation == "resized" or one.nbytes * len(self) > HELD:
            return None
        return torch.from_numpy(self.source.take(self.indices, self.preprocess)).to(self.device)

    def _labels(self, at: np.ndarray) -> Tensor | None:
        labels = self.source.labels if self.labelled else None
        return None if labels is None else torch.from_numpy(labels[at]).to(self.device)

    def _changed(self, images: Tensor, draws: Tensor) -> Tensor:
        if self.augmentation == "none" or images.dim() != 4:
            return images
        channels_last = self.preprocess.layout == "NHWC"
        planes = images.permute(0, 3, 1, 2) if channels_last else images
        planes = torch.where((draws[:, 4] < 0.5).view(-1, 1, 1, 1), planes.flip(3), planes)
        if self.augmentation == "crop":
            planes = _shifted(planes - self._black, draws) + self._black
        return planes.permute(0, 2, 3, 1).contiguous() if channels_last else planes

    @cached_property
    def _black(self) -> Tensor:
        """Value of a black pixel after normalisation, (1, C, 1, 1)."""
        black = [-mean / std for mean, std in zip(self.preprocess.mean, self.preprocess.std, strict=True)]
        return torch.tensor(black, device=self.device).view(1, -1, 1, 1)


def _shifted(images: Tensor, draws: Tensor) -> Tensor:
    """Images (N, C, H, W), each shifted by up to SHIFT of its sides and padded with zeros."""
    n, _, height, width = images.shape
    down, right = round(height * SHIFT), round(width * SHIFT)
    padded = F.pad(images, (right, right, down, down))
    top = (draws[:, 0] * (2 * down + 1)).long().clamp(max=2 * down)
    left = (draws[:, 1] * (2 * right + 1)).long().clamp(max=2 * right)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    at = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
