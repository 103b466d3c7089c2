"""How an image becomes a network's input: converted, resized, cropped, scaled to [0, 1] and normalised.

Resizing and cropping follow torchvision's `Resize` and `CenterCrop` on Pillow images, and like torchvision's
image loader this takes pixels as stored: an EXIF orientation is not applied, and transparency is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from PIL import Image

from passes.core.errors import DataError, SettingsError

__all__ = ["PRESETS", "Layout", "Preprocess"]

Layout = Literal["NCHW", "NHWC"]

_MODES = {1: "L", 3: "RGB"}
# Of the part of an image that is taken for training: the least share of its area, and width to height.
AREA, RATIO = 0.25, (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Preprocess:
    """One network's preprocessing of 8-bit images; what comes out is always float32.

    The number of means says what an image is converted to before all else: three for RGB, one for grayscale.

    Attributes:
        size: height and width of what comes out, in pixels; None leaves each image the size it has.
        resize: the shorter side is first resized to this many pixels, antialiased bilinear with the aspect
            ratio kept, and the centre of `size` is cropped from that. None resizes straight to `size`.
        mean: per channel, of images scaled to [0, 1].
        std: per channel, of images scaled to [0, 1].
        layout: axis order of what comes out, N being the samples.

    Raises:
        SettingsError: a value is out of range, or means and deviations differ in number.
    """

    size: tuple[int, int] | None
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Layout = "NCHW"

    def __post_init__(self) -> None:
        if self.size is not None:
            _check_size(self.size)
        if self.resize is not None and self.resize < max(self.size or (1,)):
            raise SettingsError(
                f"a shorter side resized to {self.resize} pixels is too short to crop {self.size} from it: "
                "make resize as large as the larger side of size, or leave it out"
            )
        if len(self.mean) not in _MODES or len(self.std) != len(self.mean):
            raise SettingsError(
                f"mean {self.mean} and std {self.std} do not fit: give both three values (RGB) or one (grayscale)"
            )
        if not all(map(math.isfinite, self.mean)):
            raise SettingsError(f"mean {self.mean} is not finite: give each channel's mean on images in [0, 1]")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise SettingsError(
                f"std {self.std} is out of range: give each channel's standard deviation, which is above 0"
            )
        if self.layout not in ("NCHW", "NHWC"):
            raise SettingsError(f"unknown layout '{self.layout}': use NCHW or NHWC")

    @property
    def channels(self) -> int:
        """Channels of what comes out: 3 or 1."""
        return len(self.mean)

    def with_overrides(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        layout: str | None = None,
    ) -> Preprocess:
        """A copy in which all that is not None replaces what is here.

        A new `size` takes `resize` along in proportion, so that a crop shows the same part of the image.

        Raises:
            SettingsError: as for the class.
        """
        new = self
        if size is not None:
            height, width = _check_size(size)
            resize = self.resize
            if resize is not None and self.size is not None:
                resize = round(resize * max(height, width) / max(self.size))
            new = replace(new, size=(height, width), resize=resize)
        return replace(
            new,
            mean=self.mean if mean is None else tuple(mean),
            std=self.std if std is None else tuple(std),
            layout=self.layout if layout is None else cast(Layout, layout),
        )

    def apply(self, image: Image.Image | np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Preprocess one image.

        Args:
            image: any Pillow image with 8 bits a channel, or uint8 of shape (H, W), (H, W, 1), (H, W, 3) or
                (H, W, 4), the last being RGBA.
            draws: four numbers from 0 to 1, by which a part of the image is taken as torchvision's
                `RandomResizedCrop` takes one for training: its area, its aspect ratio, and where it lies (top, left).
                None: the centre, as the network is served.

        Returns:
            float32 (C, H, W) or (H, W, C), as `layout` says.

        Raises:
            DataError: the pixels have more than 8 bits, or the array is not an image.
        """
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        image = _converted(image, _MODES[self.channels])
        image = self._resized(image) if draws is None else self._part(image, draws)
        pixels = np.asarray(image).reshape(1, image.height, image.width, self.channels)
        return np.asarray(self.apply_batch(pixels.transpose(0, 3, 1, 2))[0])

    def apply_batch(self, images: np.ndarray) -> np.ndarray:
        """Normalise images that have their final size already.

        Args:
            images: uint8 (N, C, H, W), with `channels` channels.

        Returns:
            float32 (N, C, H, W) or (N, H, W, C), as `layout` says.

        Raises:
            DataError: the array is not such a batch.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise DataError(
                f"a batch of {images.dtype} {images.shape} cannot be normalised: "
                f"give uint8 of shape (N, {self.channels}, H, W)"
            )
        n, c, h, w = images.shape
        out = np.empty((n, c, h, w) if self.layout == "NCHW" else (n, h, w, c), np.float32)
        planes = out if self.layout == "NCHW" else out.transpose(0, 3, 1, 2)
        # A byte has 256 values: looking them up is faster than arithmetic and needs no float copy of the batch.
        levels = np.arange(256) / 255
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            planes[:, channel] = ((levels - mean) / std).astype(np.float32)[images[:, channel]]
        return out

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is not None:
            shorter = min(image.size)
            width, height = (self.resize * side // shorter for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)  # Pillow's is antialiased
            if self.size is not None:
                top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
                image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        elif self.size is not None:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        return image

    def _part(self, image: Image.Image, draws: np.ndarray) -> Image.Image:
        """A part of an image, between AREA of it and all, at an aspect ratio of RATIO, resized to `size`."""
        area, ratio, top, left = draws.tolist()
        aspect = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
        size = (AREA + area * (1 - AREA)) * image.width * image.height
        width = min(round(math.sqrt(size * aspect)), image.width) or 1
        height = min(round(math.sqrt(size / aspect)), image.height) or 1
        x, y = int(left * (image.width - width + 1)), int(top * (image.height - height + 1))
        x, y = min(x, image.width - width), min(y, image.height - height)
        wanted = self.size or (image.height, image.width)
        return image.resize((wanted[1], wanted[0]), Image.Resampling.BILINEAR, (x, y, x + width, y + height))


def _check_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise SettingsError(f"size {tuple(size)} is not an image's: give height and width in pixels, each 1 or more")
    return size[0], size[1]


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
        raise DataError(
            f"an array of {pixels.dtype} {pixels.shape} is not an image: "
            "give uint8 of shape (H, W) or (H, W, C) with 1, 3 or 4 channels"
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255 without a word
        raise DataError(f"its pixels (mode '{image.mode}') have more than 8 bits, so save it with 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight from palette to RGB, Pillow warns of the transparency it drops
    return image.convert(mode)


PRESETS: dict[str, Preprocess] = {
    "cifar10": Preprocess(size=(32, 32), resize=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "imagenet": Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""Preprocessing by name.

"cifar10" has the mean and deviation of ImageNet, not of CIFAR-10: the widely used `pytorch_resnet_cifar10` networks
were trained with them. "imagenet" is what torchvision's ResNets are evaluated with.
"""
