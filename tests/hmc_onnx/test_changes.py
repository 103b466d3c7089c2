"""Which images are answered otherwise, the accuracy of each class, and the thumbnails."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from calib.data.calibration import CalibrationData, Origin
from calib.data.preprocess import PRESETS, Preprocess
from calib.measure.divergence import SCORES
from hmc_onnx.comparison.changes import MOST_IMAGES, THUMBNAIL, find_changes, thumbnail

LABELS = np.array([0, 1, 2, 1])


def data(count: int, origin: Origin | None = None) -> CalibrationData:
    return CalibrationData({"x": np.random.default_rng(0).random((count, 3, 8, 8), np.float32)}, None, "noise", origin)


def scores(*classes: int, height: float = 5.0) -> list[np.ndarray]:
    """Scores of three classes in batches of two images, each class chosen by `height`."""
    rows = height * np.eye(3, dtype=np.float32)[list(classes)]
    return [rows[:2], rows[2:]]


def test_with_labels_images_of_another_class_are_listed_with_their_places() -> None:
    origin = Origin("there", np.array([3, 5, 7, 9]))
    found = find_changes(SCORES, scores(0, 1, 2, 0), scores(0, 2, 2, 1), [2, 2], data(4, origin), LABELS)
    assert found.changed == 2
    assert {(i.place, i.label, i.before, i.after) for i in found.images} == {(5, 1, 1, 2), (9, 1, 0, 1)}
    assert [(c.label, c.images, c.before, c.after) for c in found.classes] == [
        (0, 1, 1.0, 1.0), (1, 2, 0.5, 0.5), (2, 1, 1.0, 1.0),
    ]  # fmt: skip


def test_without_labels_those_that_moved_most_come_first_whatever_their_class() -> None:
    reference, answers = scores(0, 1, 2, 0), scores(0, 1, 2, 0)
    answers[0][1, 1], answers[1][0, 2] = 1.0, 4.0
    found = find_changes(SCORES, reference, answers, [2, 2], data(4), None)
    assert found.changed == 0 and found.classes == []
    assert [i.place for i in found.images] == [1, 2]
    assert found.images[0].divergence > found.images[1].divergence > 0


def test_no_more_images_are_kept_than_are_shown() -> None:
    count = 2 * MOST_IMAGES
    before, after = np.zeros((count, 3), np.float32), np.zeros((count, 3), np.float32)
    before[:, 0], after[:, 1] = 5, 5
    found = find_changes(SCORES, [before], [after], [count], data(count), np.zeros(count, np.int64))
    assert found.changed == count and len(found.images) == MOST_IMAGES


def pixels(uri: str | None) -> np.ndarray:
    assert uri is not None and uri.startswith("data:image/")
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_thumbnail_shows_the_pixels_that_were_stored(layout: str, order: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    preprocess: Preprocess = PRESETS["cifar10"].with_overrides(layout=layout, order=order)
    feed = preprocess.apply(stored)[None]
    found = thumbnail(CalibrationData({"x": feed}, None, "one", Origin("there", np.arange(1), preprocess)), 0)
    np.testing.assert_array_equal(pixels(found), stored)


def test_a_thumbnail_of_unknown_preprocessing_goes_from_black_to_white_and_is_small() -> None:
    feed = np.linspace(-3, 7, 3 * 200 * 100, dtype=np.float32).reshape(1, 3, 200, 100)
    shown = pixels(thumbnail(CalibrationData({"x": feed}, None, "one"), 0))
    assert shown.shape == (THUMBNAIL, THUMBNAIL // 2, 3)
    assert shown.min() < 10 and shown.max() > 245


def test_what_is_no_image_has_no_thumbnail() -> None:
    for shape in ((1, 5), (1, 4, 8, 8), (1, 3, 1, 1)):
        assert thumbnail(CalibrationData({"x": np.ones(shape, np.float32)}, None, "one"), 0) is None
    two = {"x": np.ones((1, 3, 8, 8), np.float32), "z": np.ones((1, 3, 8, 8), np.float32)}
    assert thumbnail(CalibrationData(two, None, "one"), 0) is None
