"""Training images: what is drawn for an image depends on seed, epoch and place alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calib.data.folder import open_folder
from calib.data.preprocess import Preprocess
from calib.data.sources import StoredImages
from hmc_onnx.finetune.images import TrainingImages

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), np.uint8)
PLAIN = Preprocess(size=(16, 16), resize=None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
IMAGES = TrainingImages(StoredImages(PIXELS, np.arange(40)), np.arange(3, 40), PLAIN, "crop", 0, 5, torch.device("cpu"))


def test_an_epoch_goes_through_all_images_once_in_an_order_of_its_own() -> None:
    seen = [torch.cat([b.labels for b in IMAGES.batches(12, epoch)]).tolist() for epoch in (0, 0, 1)]
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) == len(seen[0]) == 36 and set(seen[0]) < set(range(3, 40))


@pytest.mark.parametrize(("size", "processes"), [(12, 2), (10, 2), (12, 3), (9, 3), (7, 3), (2, 3), (5, 1)])
def test_processes_share_the_batches_of_one(size: int, processes: int) -> None:
    images = replace(IMAGES, mixup=1.0)
    alone = list(images.batches(size, 3))
    every = (list(images.batches(size, 3, rank, processes)) for rank in range(processes))
    parts = [part for part in every if part]  # of two images one of three processes has none
    assert len(parts) == min(size, processes)
    for i, whole in enumerate(alone):
        assert torch.equal(whole.other, torch.cat([part[i].other for part in parts]))
        assert torch.equal(whole.share, torch.cat([part[i].share for part in parts]))
        assert torch.equal(whole.images, torch.cat([part[i].images for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part[i].labels for part in parts]))


def test_crop_shifts_by_an_eighth_at_most_and_black_comes_in() -> None:
    black = -torch.tensor(PLAIN.mean) / torch.tensor(PLAIN.std)
    shifts = set()
    for batch in IMAGES.batches(12, 0):
        for image, label in zip(batch.images, batch.labels, strict=True):
            plain = torch.from_numpy(PLAIN.apply(PIXELS[label].transpose(1, 2, 0)))
            padded = torch.nn.functional.pad(plain - black[:, None, None], (2, 2, 2, 2)) + black[:, None, None]
            fits = [
                (dy, dx, flip)
                for flip in (False, True)
                for dy in range(5)
                for dx in range(5)
                if torch.allclose((padded.flip(2) if flip else padded)[:, dy : dy + 16, dx : dx + 16], image, atol=1e-6)
            ]
            assert len(fits) == 1
            shifts.update(fits)
    assert {s[0] for s in shifts} == {s[1] for s in shifts} == set(range(5)) and {s[2] for s in shifts} == {False, True}


def test_channels_last_images_are_changed_alike() -> None:
    last = replace(IMAGES, preprocess=replace(PLAIN, layout="NHWC"))
    for a, b in zip(IMAGES.batches(12, 0), last.batches(12, 0), strict=True):
        assert torch.equal(a.images, b.images.permute(0, 3, 1, 2))


def test_mixed_images_are_sums_of_neighbours() -> None:
    mixed = replace(IMAGES, mixup=0.5)
    for whole, batch in zip(IMAGES.batches(12, 0), mixed.batches(12, 0), strict=True):
        assert torch.equal(batch.labels, whole.labels)
        assert torch.equal(batch.other.view(6, 2), whole.labels.view(6, 2).flip(1))
        assert 0 <= batch.share.min() < batch.share.max() <= 0.5
        shares = batch.share.view(-1, 1, 1, 1)
        sums = (1 - shares) * whole.images + shares * whole.images.view(6, 2, 3, 16, 16).flip(1).view(12, 3, 16, 16)
        torch.testing.assert_close(batch.images, sums, rtol=0, atol=1e-6)


def test_flip_and_none_and_plain() -> None:
    for batch in replace(IMAGES, augmentation="flip").batches(12, 0):
        plain = torch.from_numpy(PLAIN.apply_batch(PIXELS[batch.labels.numpy()]))
        same = (batch.images == plain).flatten(1).all(1)
        assert torch.equal(batch.images[~same], plain[~same].flip(3)) and 0 < same.sum() < 12
    for batch in [*replace(IMAGES, augmentation="none").batches(12, 0), *IMAGES.plain(7)]:
        assert torch.equal(batch.images, torch.from_numpy(PLAIN.apply_batch(PIXELS[batch.labels.numpy()])))


def test_resized_takes_parts_of_files_as_they_are_needed(tmp_path: Path) -> None:
    for i in range(8):
        Image.fromarray(np.full((40, 60, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    images = TrainingImages(
        open_folder(tmp_path), np.arange(8), replace(PLAIN, resize=20), "resized", 0, 0, torch.device("cpu")
    )
    first, again = (torch.cat([b.images for b in images.batches(2, 0)]) for _ in range(2))
    assert first.shape == (8, 3, 16, 16) and torch.equal(first, again)
    levels = sorted(round(float((image[0, 0, 0] * 0.2 + 0.4) * 255 / 20)) for image in first)
    assert levels == list(range(8))


@pytest.mark.parametrize("draws", [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.2, 0.5, 0.999999, 0.999999]])
def test_a_part_lies_within_the_image(draws: list[float]) -> None:
    image = np.indices((50, 70)).sum(0)[..., None].repeat(3, 2).astype(np.uint8)
    part = replace(PLAIN, mean=(0.0,) * 3, std=(1 / 255,) * 3).apply(image, np.array(draws))
    assert part.shape == (3, 16, 16)
    height, width = (part[0, -1, 0] - part[0, 0, 0]), (part[0, 0, -1] - part[0, 0, 0])
    assert 0 < height <= 50 and 0 < width <= 70
    assert part[0, 0, 0] >= 0 and part[0, -1, -1] <= 118
    assert (height + 3) * (width + 4) > 0.2 * 50 * 70
