"""Images of a file or folder as a dataset of Olive, for `olive.json`, which names this script."""

from __future__ import annotations

from typing import Any

from olive.data.registry import Registry

import hmc_onnx


@Registry.register_dataset()
def hmc_images(model: str, data: str, preset: str | None = None, split: str = "train") -> list[Any]:
    """The images as pairs of the model's inputs by name and the label; without labels, the inputs alone.

    Args:
        model: the ONNX file, whose inputs say how the images are read.
        data: the images: an .npz file or a folder of images.
        preset: the preprocessing that the model was trained with, as of `hmc-onnx compress --preset`.
        split: "train" or "test".
    """
    read = hmc_onnx.load_data(hmc_onnx.load(model), data, hmc_onnx.preprocessing(preset), samples=None, split=split)
    feeds = [{name: array[i] for name, array in read.feeds.items()} for i in range(len(read))]
    return feeds if read.labels is None else list(zip(feeds, read.labels.tolist(), strict=True))


@Registry.register_post_process()
def top1(scores: Any) -> Any:
    """The class of each image, which Olive's accuracy takes, from the model's output (N, classes)."""
    return scores.argmax(-1)
