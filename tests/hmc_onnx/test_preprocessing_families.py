"""The rows of docs/preprocessing.md: each against the formula of its family, written down anew in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hmc_onnx.analysis.model_inputs import preprocessing

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8)  # RGB
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def cropped(short: int, side: int, how: Image.Resampling = BILINEAR) -> np.ndarray:
    """The shorter side (the width) resized, and the centre cropped: torchvision's Resize and CenterCrop."""
    height = int(short * IMAGE.shape[0] / IMAGE.shape[1])
    resized = np.asarray(Image.fromarray(IMAGE).resize((short, height), how), np.float64)
    top, left = round((height - side) / 2), round((short - side) / 2)
    return resized[top : top + side, left : left + side]


def squeezed(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(IMAGE).resize((width, height), BILINEAR), np.float64)


def torchvision() -> np.ndarray:
    x = cropped(256, 224) / 255
    return ((x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])).transpose(2, 0, 1)


def keras_caffe() -> np.ndarray:
    """keras.applications.imagenet_utils, mode "caffe": RGB to BGR, then the mean is subtracted, without scaling."""
    return squeezed(224, 224)[..., ::-1] - np.array([103.939, 116.779, 123.68])


def keras_tf() -> np.ndarray:
    """Mode "tf": x / 127.5 - 1."""
    return squeezed(224, 224) / 127.5 - 1


def keras_torch() -> np.ndarray:
    """Mode "torch": x / 255, then mean and deviation of each channel."""
    return (squeezed(224, 224) / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def caffe() -> np.ndarray:
    """transform_param of the deploy files: mean_value 104, 117, 123 of BGR, crop 224 of 256."""
    return (cropped(256, 224)[..., ::-1] - np.array([104.0, 117.0, 123.0])).transpose(2, 0, 1)


def arcface() -> np.ndarray:
    """insightface's recognition models: (x - 127.5) / 128 of aligned faces, 112×112, RGB."""
    return ((squeezed(112, 112) - 127.5) / 128).transpose(2, 0, 1)


def timm() -> np.ndarray:
    """resnet50.a1_in1k: crop_pct 0.95 of 288, bicubic; timm resizes the shorter side to floor(288 / 0.95)."""
    x = cropped(int(288 / 0.95), 288, BICUBIC) / 255
    return ((x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])).transpose(2, 0, 1)


def timm_inception() -> np.ndarray:
    """IMAGENET_INCEPTION_MEAN and _STD, crop_pct 0.875 of 224, bicubic."""
    return ((cropped(int(224 / 0.875), 224, BICUBIC) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def cifar() -> np.ndarray:
    x = squeezed(32, 32) / 255
    return ((x - np.array([0.4914, 0.4822, 0.4465])) / np.array([0.2470, 0.2435, 0.2616])).transpose(2, 0, 1)


def pytorch_resnet_cifar10() -> np.ndarray:
    x = squeezed(32, 32) / 255
    return ((x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])).transpose(2, 0, 1)


def grey() -> np.ndarray:
    """MNIST's usual normalisation of one channel."""
    x = np.asarray(Image.fromarray(IMAGE).convert("L").resize((28, 28), BILINEAR), np.float64) / 255
    return ((x - 0.1307) / 0.3081)[None]


def raw() -> np.ndarray:
    """Pixels from 0 to 255, for a graph that normalises by itself."""
    return squeezed(224, 224)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES: list[tuple[Callable[[], np.ndarray], dict[str, Any]]] = [
    (torchvision, {"preset": "imagenet"}),
    (keras_caffe, {
        "size": (224, 224), "layout": "NHWC", "channels": "bgr", "scale": 1, "mean": (103.939, 116.779, 123.68),
    }),
    (keras_tf, {"size": (224, 224), "layout": "NHWC", "scale": 127.5, "mean": (1, 1, 1)}),
    (keras_torch, {"size": (224, 224), "layout": "NHWC", "mean": MEAN, "std": STD}),
    (caffe, {"size": (224, 224), "resize": 256, "channels": "bgr", "scale": 1, "mean": (104, 117, 123)}),
    (arcface, {"size": (112, 112), "scale": 1, "mean": (127.5,) * 3, "std": (128,) * 3}),
    (timm, {"preset": "imagenet", "size": (288, 288), "resize": 303, "interpolation": "bicubic"}),
    (timm_inception, {"preset": "imagenet", "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}),
    (cifar, {"size": (32, 32), "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}),
    (pytorch_resnet_cifar10, {"preset": "cifar10"}),
    (grey, {"size": (28, 28), "mean": (0.1307,), "std": (0.3081,)}),
    (raw, {"size": (224, 224), "layout": "NHWC", "scale": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "options"), FAMILIES, ids=[formula.__name__ for formula, _ in FAMILIES])
def test_the_options_of_a_family_give_its_formula(formula: Callable[[], np.ndarray], options: dict[str, Any]) -> None:
    found = preprocessing(**options).apply(IMAGE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, formula(), rtol=1e-6, atol=1e-6)


def test_the_page_has_these_options() -> None:
    """Each option of each row, as docs/preprocessing.md writes it."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    for _, options in FAMILIES:
        words = []
        for name, value in options.items():
            values = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([f"--{name}", *map(str, values)]))
        assert f"`{' '.join(words)}`" in page
