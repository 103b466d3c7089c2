"""How stored images become a model's input, and stored labels its class numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from calib.data.labels import Labelling, read_label_map
from calib.data.preprocess import PRESETS, Preprocess
from hmc_onnx.records.options import Option, Options

__all__ = ["Images"]

PLAIN = Preprocess(size=None, resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)


class Images(Options):
    """How an image becomes the model's input, and a label its class number; docs/preprocessing.md has examples.

    A pixel p, from 0 to 255, becomes (p / scale - mean) / std.
    """

    panel: ClassVar[str] = "Data and preprocessing"

    preset: Annotated[
        Literal["cifar10", "imagenet"] | None, Option(default="pixels are divided by 255 and nothing else")
    ] = Field(default=None, description="Size, mean and standard deviation that the model was trained with.")
    mean: Annotated[
        tuple[float, ...] | None, Option(metavar="X [X X]", default="the preset's", example="[0.5, 0.5, 0.5]")
    ] = Field(
        default=None,
        description="Mean of each channel of pixels divided by `scale`, in the order of `channels`; one value for a "
        "network of grayscale images.",
    )
    std: Annotated[
        tuple[float, ...] | None, Option(metavar="X [X X]", default="the preset's", example="[0.5, 0.5, 0.5]")
    ] = Field(
        default=None,
        description="Standard deviation of each channel of pixels divided by `scale`, in the order of `channels`; one "
        "value for a network of grayscale images.",
    )
    size: Annotated[
        tuple[int, int] | None, Option(metavar="H W", default="the preset's, or that of the images", example="[32, 32]")
    ] = Field(default=None, description="Height and width of the model's input.")
    resize: int | None = Field(
        default=None,
        ge=1,
        description="Resize the shorter side to this many pixels, and crop the centre of `size` from that. Without it "
        "and without a preset that has one, images are resized straight to `size`.",
    )
    interpolation: Annotated[Literal["bilinear", "bicubic"] | None, Option(default="bilinear")] = Field(
        default=None, description="How images are resized, always antialiased."
    )
    layout: Annotated[Literal["NCHW", "NHWC"] | None, Option(default="NCHW")] = Field(
        default=None, description="Order of the axes of the model's input."
    )
    channels: Annotated[Literal["rgb", "bgr"] | None, Option(default="rgb")] = Field(
        default=None, description="Order of the colours that the model was trained with."
    )
    scale: Annotated[float | None, Option(default="255")] = Field(
        default=None,
        gt=0,
        description="What pixels are divided by before the mean is subtracted: 255 brings them to [0, 1], 1 leaves "
        "them from 0 to 255.",
    )
    labels_offset: int = Field(
        default=0,
        description="Added to every label: 1 where labels count from 0 and class 0 of the model is the background, as "
        "in heads of 1,001 classes.",
    )
    label_map: Path | None = Field(
        default=None,
        description="Text or JSON file of the class number of each class folder. Without it, folders are numbered in "
        "the order of their names, or by their names where all are integers.",
    )
    skip_unreadable: Annotated[bool, Option(negative=False)] = Field(
        default=False, description="Leave out image files that cannot be decoded, and say how many these were."
    )

    def preprocess(self) -> Preprocess:
        """How an image becomes the model's input.

        Raises:
            SettingsError: the values do not fit together.
        """
        base = PLAIN if self.preset is None else PRESETS[self.preset]
        std = self.std
        if self.preset is None and self.mean is not None and std is None:
            std = (1.0,) * len(self.mean)  # a mean alone says how many channels there are
        return base.with_overrides(
            mean=self.mean,
            std=std,
            size=self.size,
            resize=self.resize,
            interpolation=self.interpolation,
            layout=self.layout,
            order=self.channels,
            scale=self.scale,
        )

    def labelling(self) -> Labelling:
        """How a stored label becomes a class number; raises DataError where the label map cannot be read."""
        return Labelling(self.labels_offset, None if self.label_map is None else read_label_map(self.label_map))
