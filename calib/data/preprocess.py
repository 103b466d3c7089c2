"""How an image becomes a network's input: converted, resized, cropped, scaled and normalised.

Resizing and cropping follow torchvision's `Resize` and `CenterCrop` on Pillow images. Pixels are used as stored, like
in torchvision's image loader: an EXIF orientation is not applied, and transparency is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np
from PIL import Image
from typing_extensions import Unpack

from passes.core.errors import DataError, SettingsError

__all__ = ["FLOAT", "PRESETS", "Interpolation", "Layout", "Order", "Overrides", "Preprocess"]

Layout = Literal["NCHW", "NHWC"]
Order = Literal["rgb", "bgr"]
Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}  # antialiased in Pillow
FLOAT = np.dtype(np.float32)
_MODES = {1: "L", 3: "RGB"}
# Random crops for training: the least share of the image's area, and the range of aspect ratios (width / height).
AREA, RATIO = 0.25, (3 / 4, 4 / 3)


class Overrides(TypedDict, total=False):
    """Fields of `Preprocess` that replace those of a preset; None keeps the value of the preset."""

    size: Sequence[int] | None
    resize: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    layout: str | None
    order: str | None
    scale: float | None
    interpolation: str | None


@dataclass(frozen=True)
class Preprocess:
    """One network's preprocessing of 8-bit images: a pixel p from 0 to 255 becomes (p / scale - mean) / std.

    The number of means decides what an image is converted to first: three for colour, one for grayscale.

    Attributes:
        size: height and width of the output, in pixels; None keeps the size of each image.
        resize: length in pixels to which the shorter side is resized first, antialiased and with the aspect ratio kept;
            a centre crop of `size` follows. None resizes directly to `size`.
        mean: mean of each channel of the pixels divided by `scale`; the channels are in the order `order`.
        std: standard deviation of each channel, likewise.
        layout: axis order of a batch of outputs; N is the samples.
        order: order of the three channels of the output.
        scale: divisor of the pixels: 255 brings them to [0, 1], and 1 keeps them in [0, 255].
        interpolation: method of resizing.
        dtype: element type of the output: float32; or uint8 for a network that takes unchanged pixels, with no scale,
            mean or std. No other type is supported for images.

    Raises:
        SettingsError: a value is out of range, or `mean` and `std` differ in length.
    """

    size: tuple[int, int] | None
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Layout = "NCHW"
    order: Order = "rgb"
    scale: float = 255.0
    interpolation: Interpolation = "bilinear"
    dtype: np.dtype = FLOAT

    def __post_init__(self) -> None:
        if self.size is not None:
            _check_size(self.size)
        if self.resize is not None and self.resize < max(self.size or (1,)):
            raise SettingsError(
                f"a shorter side resized to {self.resize} pixels is too short to crop {self.size} from it: "
                "make `resize` as large as the larger side of `size`, or leave it out"
            )
        if len(self.mean) not in _MODES or len(self.std) != len(self.mean):
            raise SettingsError(
                f"`mean` {self.mean} and `std` {self.std} do not fit: give both three values (colour) or one (gray)"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise SettingsError(f"`scale` {self.scale} is out of range: give 255, which pixels are divided by, or 1")
        if not all(map(math.isfinite, self.mean)):
            raise SettingsError(f"`mean` {self.mean} is not finite: give each channel's mean")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise SettingsError(
                f"`std` {self.std} is out of range: give each channel's standard deviation, which is above 0"
            )
        largest = 255 / self.scale
        if max(self.mean) > largest:
            raise SettingsError(
                f"`mean` {self.mean} is above {largest:g}, the largest value of a pixel that is divided by "
                f"{self.scale:g}: where mean and std are of pixels from 0 to 255, set `scale` to 1, too"
            )
        for name, known in (("layout", ("NCHW", "NHWC")), ("order", ("rgb", "bgr")), ("interpolation", (*_FILTERS,))):
            if getattr(self, name) not in known:
                raise SettingsError(f"unknown {name} '{getattr(self, name)}': use {' or '.join(known)}")

    @property
    def channels(self) -> int:
        """Number of channels of the output: 3 or 1."""
        return len(self.mean)

    @property
    def normalises(self) -> bool:
        """Whether `mean` or `std` changes any channel."""
        return any(self.mean) or any(value != 1 for value in self.std)

    def with_overrides(self, **changes: Unpack[Overrides]) -> Preprocess:
        """A copy in which the given values that are not None replace the fields of the same name.

        A new `size` without a new `resize` scales `resize` in proportion, so that the crop shows the same part.

        Raises:
            SettingsError: as for the class.
        """
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        if "size" in given:
            given["size"] = _check_size(given["size"])
            if self.resize is not None and self.size is not None:
                given.setdefault("resize", round(self.resize * max(given["size"]) / max(self.size)))
        given |= {name: tuple(given[name]) for name in ("mean", "std") if name in given}
        return replace(self, **given)

    def apply(self, image: Image.Image | np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Preprocess one image.

        Args:
            image: any Pillow image with 8 bits per channel, or a uint8 array (H, W), (H, W, 1), (H, W, 3) for RGB, or
                (H, W, 4) for RGBA.
            draws: four random numbers in [0, 1] for a random crop as in torchvision's `RandomResizedCrop`; they decide
                its area, aspect ratio, top and left. None: the fixed preprocessing that is used in deployment.

        Returns:
            An array (C, H, W) or (H, W, C), as `layout` says, of `dtype`.

        Raises:
            DataError: the pixels have more than 8 bits per channel, or the array is not an image, or as for
                `apply_batch`.
            SettingsError: as for `apply_batch`.
        """
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        image = _converted(image, _MODES[self.channels])
        image = self._resized(image) if draws is None else self._part(image, draws)
        pixels = np.asarray(image).reshape(1, image.height, image.width, self.channels)
        return np.asarray(self.apply_batch(pixels.transpose(0, 3, 1, 2))[0])

    def apply_batch(self, images: np.ndarray) -> np.ndarray:
        """Normalise images that already have their final size.

        Args:
            images: uint8 (N, C, H, W) with C = `channels`; three channels are in the order RGB.

        Returns:
            An array (N, C, H, W) or (N, H, W, C), as `layout` says, of `dtype`.

        Raises:
            DataError: `images` has another type or shape, or `dtype` is neither float32 nor uint8.
            SettingsError: `dtype` is uint8, and scale, mean or std is set.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise DataError(
                f"a batch of {images.dtype} {images.shape} cannot be normalised: "
                f"give uint8 of shape (N, {self.channels}, H, W)"
            )
        levels = self._levels()
        n, c, h, w = images.shape
        out = np.empty((n, c, h, w) if self.layout == "NCHW" else (n, h, w, c), self.dtype)
        planes = out if self.layout == "NCHW" else out.transpose(0, 3, 1, 2)
        stored = range(c) if self.order == "rgb" else range(c)[::-1]
        for channel, source in enumerate(stored):
            planes[:, channel] = levels[channel][images[:, source]]
        return out

    def _levels(self) -> list[np.ndarray]:
        """For each channel, a table (256,) of the output for each value of a byte.

        A look-up is faster than arithmetic and needs no float copy of the batch.
        """
        self.check_type()
        if self.dtype == np.uint8:
            return [np.arange(256, dtype=np.uint8)] * self.channels
        scaled = np.arange(256) / self.scale
        return [((scaled - mean) / std).astype(np.float32) for mean, std in zip(self.mean, self.std, strict=True)]

    def check_type(self) -> None:
        """Check that images can be converted to `dtype`; raises DataError or SettingsError as `apply_batch` does."""
        if self.dtype == np.float32:
            return
        if self.dtype != np.uint8:
            raise DataError(
                f"an image cannot be made into the {self.dtype} that the model takes: "
                f"store arrays of {self.dtype}, as they are to be fed, in an .npz file under the input's name"
            )
        if self.normalises or self.scale not in (1, 255):
            raise SettingsError(
                "the model takes pixels as they are (uint8), and would be fed normalised ones: "
                "leave `preset`, `mean`, `std` and `scale` out, and give `size` and `layout` alone"
            )

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is not None:
            shorter = min(image.size)
            width, height = (self.resize * side // shorter for side in image.size)
            image = image.resize((width, height), _FILTERS[self.interpolation])
            if self.size is not None:
                top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
                image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        elif self.size is not None:
            image = image.resize((self.size[1], self.size[0]), _FILTERS[self.interpolation])
        return image

    def _part(self, image: Image.Image, draws: np.ndarray) -> Image.Image:
        """A random crop, of at least the share AREA of the image and an aspect ratio in RATIO, resized to `size`."""
        area, ratio, top, left = draws.tolist()
        aspect = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
        size = (AREA + area * (1 - AREA)) * image.width * image.height
        width = min(round(math.sqrt(size * aspect)), image.width) or 1
        height = min(round(math.sqrt(size / aspect)), image.height) or 1
        x, y = int(left * (image.width - width + 1)), int(top * (image.height - height + 1))
        x, y = min(x, image.width - width), min(y, image.height - height)
        wanted = self.size or (image.height, image.width)
        return image.resize((wanted[1], wanted[0]), _FILTERS[self.interpolation], (x, y, x + width, y + height))


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
    if image.mode.startswith(("I", "F")):  # Pillow would silently clip these to 255
        raise DataError(f"its pixels (mode '{image.mode}') have more than 8 bits, so save it with 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns that it drops transparency
    return image.convert(mode)


PRESETS: dict[str, Preprocess] = {
    "cifar10": Preprocess(size=(32, 32), resize=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "imagenet": Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""Preprocessing by name.

"cifar10" has ImageNet's mean and standard deviation, because the widely used `pytorch_resnet_cifar10` networks were
trained with them. "imagenet" is the preprocessing that torchvision's ResNets are evaluated with.
"""
