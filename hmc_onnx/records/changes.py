"""What changed for the images of a comparison: accuracy class by class, and the images that are answered otherwise."""

from __future__ import annotations

from pydantic import Field

from passes.core.records import Frozen

__all__ = ["ChangedImage", "Changes", "ClassAccuracy"]


class ClassAccuracy(Frozen):
    """Share of a class's images that each model classifies correctly.

    Attributes:
        label: number of the class.
        images: how many of the images are of this class.
        before: accuracy of the original, 0 to 1.
        after: accuracy of the compressed model, 0 to 1.
    """

    label: int
    images: int
    before: float
    after: float


class ChangedImage(Frozen):
    """An image that the two models answer differently.

    Attributes:
        place: number of the image among those stored in the data, from 0; in the order of their names for folders.
        label: its class; None where the data has no labels.
        before: class that the original chooses; None where it does not choose one class an image.
        after: class that the compressed model chooses; None as for `before`.
        divergence: of the compressed model's outputs from the original's for this image, in nats.
        thumbnail: a small picture as a data URI; None where the model's input is not an image.
    """

    place: int
    label: int | None
    before: int | None
    after: int | None
    divergence: float
    thumbnail: str | None = None


class Changes(Frozen):
    """Differences between the answers of two models, image by image.

    Attributes:
        classes: accuracy of each class that occurs, by class number; empty where there are no labels.
        names: of classes by number, where the data has a folder for each class.
        changed: number of images for which the two models choose different classes; None where none is chosen.
        images: some of these, the most different answers first; without labels, those whose answer moved most.
    """

    classes: list[ClassAccuracy] = Field(default_factory=list)
    names: dict[int, str] = Field(default_factory=dict)
    changed: int | None = None
    images: list[ChangedImage] = Field(default_factory=list)
