"""Reading calibration images: preprocessing, every kind of storage, sampling, Python readers, and the errors."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calib.data.calibration import CalibrationData, from_reader
from calib.data.preprocess import PRESETS, Preprocess
from calib.data.readers import Selection, read
from passes.core.errors import DataError, SettingsError

CIFAR = PRESETS["cifar10"]
PLAIN = Preprocess(size=None, resize=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def pixels(n: int = 6, h: int = 32, w: int = 32, c: int = 3, seed: int = 0) -> np.ndarray:
    images: np.ndarray = np.random.default_rng(seed).integers(0, 256, (n, c, h, w), np.uint8)
    return images


def normalised(images: np.ndarray, preprocess: Preprocess = CIFAR) -> np.ndarray:
    """The formula, written down anew: (N, C, H, W) bytes to (x / 255 - mean) / std."""
    mean, std = (np.array(v).reshape(1, -1, 1, 1) for v in (preprocess.mean, preprocess.std))
    return np.asarray((images / 255.0 - mean) / std, np.float32)


def load(path: Path, preprocess: Preprocess = CIFAR, **changes: Any) -> CalibrationData:
    chosen = Selection(**{name: changes.pop(name) for name in ("samples", "seed", "split") if name in changes})
    settings: dict[str, Any] = {"input_name": "x", "input_shape": (None, 3, 32, 32)}
    return read(path, preprocess=preprocess, selection=chosen, **(settings | changes))


def save_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def flat_image(path: Path, value: int, size: tuple[int, int] = (32, 32)) -> Path:
    return save_image(path, np.full((*size, 3), value, np.uint8))


def fails(match: str, path: Path | None, action: Any, kind: type[Exception] = DataError) -> None:
    """The action raises one sentence that matches and names the path."""
    with pytest.raises(kind, match=match) as caught:
        action()
    message = str(caught.value)
    if path is not None:
        assert f"'{path}'" in message
        message = message.replace(str(path), "")
    assert "\n" not in message and not re.search(r"[.!?](\s|$)", message)


# --- preprocessing


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_normalises_by_the_formula_in_both_layouts(layout: str) -> None:
    images = pixels()
    expected = normalised(images) if layout == "NCHW" else normalised(images).transpose(0, 2, 3, 1)
    preprocess = CIFAR.with_overrides(layout=layout)
    batch = preprocess.apply_batch(images)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, expected)
    for image, want in zip(images, expected, strict=True):
        np.testing.assert_array_equal(preprocess.apply(image.transpose(1, 2, 0)), want)


def test_resizes_the_shorter_side_and_crops_the_centre() -> None:
    # 60 x 20 to a shorter side of 10 is 30 x 10: the crop of 10 x 10 begins at column 10
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    out = Preprocess((10, 10), 10, (0.0,) * 3, (1.0,) * 3).apply(image)
    assert out.shape == (3, 10, 10)
    assert out[:, :, 1:-1].min() == 1.0
    # the row that the centre crop begins with, seen without resizing: (9 - 4) / 2 = 2.5 is rounded to even
    rows = np.repeat(np.arange(9, dtype=np.uint8)[:, None], 4, axis=1)
    cropped = Preprocess((4, 4), 4, (0.0,), (1 / 255,)).apply(rows)
    np.testing.assert_array_equal(cropped[0, :, 0].round(), [2, 3, 4, 5])


def test_crop_is_what_pillow_gives() -> None:
    image = Image.fromarray(pixels(1, 40, 50)[0].transpose(1, 2, 0))
    preprocess = Preprocess((16, 20), 24, CIFAR.mean, CIFAR.std)
    resized = image.resize((30, 24), Image.Resampling.BILINEAR).crop((5, 4, 25, 20))
    np.testing.assert_array_equal(preprocess.apply(image), normalised(np.asarray(resized).transpose(2, 0, 1)[None])[0])


def test_resizes_straight_to_the_size_with_antialiasing() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing each sample would be near 0 or 1 or depend on its phase
    out = Preprocess((16, 8), None, (0.0,) * 3, (1.0,) * 3).apply(stripes)
    assert out.shape == (3, 16, 8)
    np.testing.assert_allclose(out, 0.5, atol=0.02)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(mode: str) -> None:
    picture = Image.fromarray(pixels(1)[0].transpose(1, 2, 0)).convert(mode)
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(CIFAR.apply(picture), normalised(expected)[0])


def test_grayscale_fills_all_three_channels() -> None:
    out = PLAIN.apply(np.full((2, 2), 51, np.uint8))
    np.testing.assert_array_equal(out, np.full((3, 2, 2), 0.2, np.float32))


@pytest.mark.filterwarnings("error")
def test_palette_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 255, 0, 51])
    picture.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(PLAIN.apply(image)[:, 0, 0], np.array([1, 0, 0.2], np.float32))


def test_one_mean_means_grayscale() -> None:
    gray = Preprocess(None, None, (0.5,), (0.25,))
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 1] = 255
    level = np.asarray(Image.fromarray(image).convert("L"))[0, 0]
    np.testing.assert_array_equal(gray.apply(image), np.full((1, 2, 2), (level / 255 - 0.5) / 0.25, np.float32))


def test_a_new_size_takes_the_resize_along() -> None:
    assert PRESETS["imagenet"].with_overrides(size=(112, 112)) == Preprocess(
        (112, 112), 128, PRESETS["imagenet"].mean, PRESETS["imagenet"].std
    )
    assert CIFAR.with_overrides() == CIFAR


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"std": (0.2, float("nan"), 0.2)}, "std"),
        ({"mean": (0.2, float("inf"), 0.2)}, "mean"),
        ({"mean": (0.5,)}, "three values"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 2}, "three values"),
        ({"size": (32,)}, "size"),
        ({"size": (32, 0)}, "size"),
        ({"layout": "CHWN"}, "CHWN"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], match: str) -> None:
    fails(match, None, lambda: CIFAR.with_overrides(**change), SettingsError)


def test_a_resize_smaller_than_the_crop_is_refused() -> None:
    fails("too short", None, lambda: Preprocess((32, 40), 36, (0.0,), (1.0,)), SettingsError)


def test_arrays_that_are_no_images_are_refused() -> None:
    fails("float32", None, lambda: CIFAR.apply(np.zeros((4, 4, 3), np.float32)))
    fails("not an image", None, lambda: CIFAR.apply(np.zeros((3, 5, 5), np.uint8)))
    fails("normalised", None, lambda: CIFAR.apply_batch(np.zeros((2, 4, 4, 3), np.uint8)))


# --- .npz files


@pytest.mark.parametrize("keys", [("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")])
@pytest.mark.parametrize("nhwc", [False, True])
def test_npz_images_and_labels(tmp_path: Path, keys: tuple[str, str], nhwc: bool) -> None:
    images, labels = pixels(), np.array([[3], [1], [4], [1], [5], [9]], np.uint8)  # a column, as Keras has it
    stored: dict[str, Any] = {keys[0]: images.transpose(0, 2, 3, 1) if nhwc else images, keys[1]: labels}
    np.savez(tmp_path / "d.npz", **stored)
    data = load(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.feeds["x"], normalised(images))
    assert data.labels is not None and data.labels.dtype == np.int64
    assert data.labels.tolist() == [3, 1, 4, 1, 5, 9]
    assert data.source == f"6 images of '{tmp_path / 'd.npz'}'"


def test_npz_split_is_the_one_asked_for(tmp_path: Path) -> None:
    train, test = pixels(4, seed=1), pixels(5, seed=2)
    np.savez_compressed(tmp_path / "d.npz", train_images=train, test_images=test, test_labels=np.arange(5))
    data = load(tmp_path / "d.npz", split="test")
    np.testing.assert_array_equal(data.feeds["x"], normalised(test))
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3, 4]
    assert load(tmp_path / "d.npz").labels is None
    fails("no split 'val'.*test, train", tmp_path / "d.npz", lambda: load(tmp_path / "d.npz", split="val"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_floats_are_taken_as_ready(tmp_path: Path, dtype: Any) -> None:
    ready = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(dtype)
    np.savez(tmp_path / "d.npz", x=ready, labels=np.arange(4))
    data = load(tmp_path / "d.npz", PRESETS["imagenet"])
    assert data.feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(data.feeds["x"], ready.astype(np.float32))
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3]


def test_npz_ready_tensors_need_not_be_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 7), np.float32))
    assert load(tmp_path / "d.npz", input_shape=(1, 7)).feeds["x"].shape == (4, 7)
    fails(
        r"come out as \(7\).*takes \(8\).*taken as they are",
        tmp_path / "d.npz",
        lambda: load(tmp_path / "d.npz", input_shape=(None, 8)),
    )


def test_npz_grayscale_is_repeated_or_kept(tmp_path: Path) -> None:
    images = pixels(c=1)
    np.savez(tmp_path / "d.npz", images=images[:, 0])
    np.testing.assert_array_equal(load(tmp_path / "d.npz").feeds["x"], normalised(np.repeat(images, 3, axis=1)))
    gray = Preprocess((32, 32), 40, (0.5,), (0.25,))
    kept = load(tmp_path / "d.npz", gray, input_shape=(None, 1, 32, 32))
    np.testing.assert_array_equal(kept.feeds["x"], normalised(images, gray))


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 3), (32, 32, 1)])
def test_an_image_without_a_batch_axis_is_not_taken_for_many(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "one.npy", np.zeros(shape, np.uint8))
    fails("one image without a batch axis", tmp_path / "one.npy", lambda: load(tmp_path / "one.npy"))


def test_npz_images_of_another_size_are_resized_and_of_the_final_size_are_not(tmp_path: Path) -> None:
    images = pixels(3, 48, 40)
    np.savez(tmp_path / "d.npz", images=images)
    crop = Preprocess((32, 32), 36, CIFAR.mean, CIFAR.std)
    resized = load(tmp_path / "d.npz", crop).feeds["x"]
    np.testing.assert_array_equal(resized, np.stack([crop.apply(i.transpose(1, 2, 0)) for i in images]))
    np.savez(tmp_path / "d.npz", images=pixels())
    np.testing.assert_array_equal(load(tmp_path / "d.npz", crop).feeds["x"], normalised(pixels()))
    # colour to grayscale goes image by image, and must leave the final size alone too
    gray = load(tmp_path / "d.npz", Preprocess((32, 32), 36, (0.0,), (1 / 255,)), input_shape=(None, 1, 32, 32))
    level = np.asarray(Image.fromarray(pixels()[0].transpose(1, 2, 0)).convert("L"))
    np.testing.assert_allclose(gray.feeds["x"][0, 0], level, atol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": np.zeros((2, 3, 32, 3), np.uint8)}, "NCHW or NHWC"),
        ({"images": np.zeros((2, 4, 32, 32), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((2, 3), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((2, 3, 32, 32), np.int64)}, "int64"),
        ({"images": np.zeros((0, 3, 32, 32), np.uint8)}, "empty"),
        ({"images": pixels(2), "labels": np.arange(3)}, "'labels'.*each of the 2 images"),
        ({"images": pixels(2), "labels": np.array([0.5, 1.0])}, "'labels'.*float64"),
        ({"pictures": pixels(2)}, "no images among its keys .pictures"),
        ({"images": np.array([{}], object)}, "plain arrays"),
        ({"x": np.array([[1, np.nan], [0, 0]], np.float32)}, "takes"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    fails(match, tmp_path / "d.npz", lambda: load(tmp_path / "d.npz"))


def test_npz_with_nan_names_the_input_and_the_sample(tmp_path: Path) -> None:
    values = np.zeros((100, 5), np.float32)
    values[70, 3] = np.inf
    np.savez(tmp_path / "d.npz", x=values)
    fails("input 'x'.*sample 70 ", tmp_path / "d.npz", lambda: load(tmp_path / "d.npz", input_shape=(None, 5)))


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 broken"])
def test_npz_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    fails("cannot read", tmp_path / "d.npz", lambda: load(tmp_path / "d.npz"))


def test_npz_with_a_flipped_byte_or_a_single_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=pixels())
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "d.npz").write_bytes(content)
    fails("cannot read", tmp_path / "d.npz", lambda: load(tmp_path / "d.npz"))
    with (tmp_path / "d.npz").open("wb") as file:
        np.save(file, pixels())
    fails("cannot read", tmp_path / "d.npz", lambda: load(tmp_path / "d.npz"))


# --- sampling and fit


def test_the_seed_decides_which_samples(tmp_path: Path) -> None:
    images = pixels(40)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(40))
    data = load(tmp_path / "d.npz", samples=10, seed=7)
    chosen = np.sort(np.random.default_rng(7).choice(40, 10, replace=False))
    assert data.labels is not None and data.labels.tolist() == chosen.tolist()
    np.testing.assert_array_equal(data.feeds["x"], normalised(images[chosen]))
    assert data.source == f"10 of 40 images of '{tmp_path / 'd.npz'}'"
    assert load(tmp_path / "d.npz", samples=10, seed=7).digest() == data.digest()
    assert load(tmp_path / "d.npz", samples=10, seed=8).digest() != data.digest()


@pytest.mark.parametrize("samples", [None, 6, 7])
def test_all_samples_stay_in_order(tmp_path: Path, samples: int | None) -> None:
    np.savez(tmp_path / "d.npz", images=pixels(), labels=np.arange(6))
    labels = load(tmp_path / "d.npz", samples=samples).labels
    assert labels is not None and labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_samples_and_seed_out_of_range(tmp_path: Path) -> None:
    fails("0 samples", None, lambda: load(tmp_path, samples=0), SettingsError)
    fails("seed -1", None, lambda: load(tmp_path, seed=-1), SettingsError)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((1, 3, 224, 224), r"\(3, 32, 32\).*'x' takes \(3, 224, 224\): set `size` or `preset`"),
        ((None, 32, 32, 3), r"takes \(32, 32, 3\): set `layout='NHWC'`"),
        ((None, 64, None, 3), r"takes \(64, \?, 3\): set `layout='NHWC'` and `size` or `preset`"),
        ((None, 1, 32, 32), r"takes \(1, 32, 32\): set `mean` and `std` \(each 1 long\)"),
        ((None, 4, 32, 32), r"takes \(4, 32, 32\).*ready float tensors as 'x'"),
        ((None, 3072), r"takes \(3072\).*ready float tensors as 'x'"),
    ],
)
def test_images_that_do_not_fit_the_model(tmp_path: Path, shape: tuple[int | None, ...], advice: str) -> None:
    np.savez(tmp_path / "d.npz", images=pixels())
    fails(advice + "( in an .npz file)?$", tmp_path / "d.npz", lambda: load(tmp_path / "d.npz", input_shape=shape))


def test_advice_where_channels_come_last(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=pixels(h=48))
    nhwc = CIFAR.with_overrides(layout="NHWC", size=(48, 32))
    for shape, advice in [((None, 3, 48, 32), "`layout='NCHW'`"), ((None, 32, 48, 3), "`size` or `preset`")]:
        action = partial(load, tmp_path / "d.npz", nhwc, input_shape=shape)
        fails(rf"come out as \(48, 32, 3\).*: set {advice}$", tmp_path / "d.npz", action)


def test_unknown_dimensions_fit_and_the_advice_works(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=pixels())
    assert load(tmp_path / "d.npz", input_shape=(8, None, None, None)).feeds["x"].shape == (6, 3, 32, 32)
    nhwc = CIFAR.with_overrides(layout="NHWC", size=(64, 48))
    assert load(tmp_path / "d.npz", nhwc, input_shape=(None, 64, None, 3)).feeds["x"].shape == (6, 64, 48, 3)


# --- folders of images


def test_flat_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for value, name in enumerate(["b.PNG", "a.png", "c.bmp", "D.ppm", "e.webp"]):
        if name.endswith("webp"):
            Image.new("RGB", (32, 32), (value,) * 3).save(tmp_path / name, lossless=True)
        else:
            flat_image(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.png").write_text("no image")
    data = load(tmp_path, PLAIN)
    assert (data.feeds["x"][:, 0, 0, 0] * 255).round().tolist() == [3, 1, 0, 2, 4]
    assert data.labels is None


def test_folder_images_are_exact_and_jpeg_is_close(tmp_path: Path) -> None:
    images = pixels(12)
    for i, image in enumerate(images):
        save_image(tmp_path / f"{i:02}.png", image.transpose(1, 2, 0))
    np.testing.assert_array_equal(load(tmp_path).feeds["x"], normalised(images))
    chosen = np.sort(np.random.default_rng(3).choice(12, 5, replace=False))
    np.testing.assert_array_equal(load(tmp_path, samples=5, seed=3).feeds["x"], normalised(images[chosen]))
    for name in ("a.jpg", "a.JPEG"):
        flat_image(tmp_path / "jpeg" / name, 100)
    np.testing.assert_allclose(load(tmp_path / "jpeg", PLAIN).feeds["x"], 100 / 255, atol=0.01)


def test_class_folders_are_numbered_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "cat"):
        flat_image(tmp_path / name / "1.png", ord(name[0]))
    flat_image(tmp_path / "cat" / "0.png", 7)
    (tmp_path / "bee").mkdir()  # a class without images keeps its number
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path, PLAIN)
    assert data.labels is not None and data.labels.tolist() == [0, 2, 2, 3]
    assert (data.feeds["x"][:, 0, 0, 0] * 255).round().tolist() == [ord("a"), 7, ord("c"), ord("z")]


def test_class_folders_with_integer_names_are_those_classes(tmp_path: Path) -> None:
    for name in ("10", "9", "007"):
        flat_image(tmp_path / name / "a.png", int(name))
    data = load(tmp_path, PLAIN)
    assert data.labels is not None and data.labels.tolist() == [7, 10, 9]
    assert (data.feeds["x"][:, 0, 0, 0] * 255).round().tolist() == [7, 10, 9]


def test_folder_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    for i in range(5):
        flat_image(tmp_path / f"{i}.png", i)
    bad = tmp_path / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    fails("cannot decode", bad, lambda: load(tmp_path))
    bad.write_text("text")
    fails("cannot decode", bad, lambda: load(tmp_path))
    bad.write_text("P6 60000 60000 255 ")  # too large to be decoded: an error of Pillow's own
    fails("cannot decode", bad, lambda: load(tmp_path))


def test_folder_image_with_16_bits(tmp_path: Path) -> None:
    deep = save_image(tmp_path / "deep.png", np.full((32, 32), 40000, np.uint16))
    fails("more than 8 bits", deep, lambda: load(tmp_path))


def test_folder_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    flat_image(tmp_path / "a.png", 1)
    odd = flat_image(tmp_path / "b.png", 2, (32, 40))
    fails("set `size`", odd, lambda: load(tmp_path, PLAIN))
    assert load(tmp_path, CIFAR).feeds["x"].shape == (2, 3, 32, 32)


def test_folders_without_or_with_mixed_images(tmp_path: Path) -> None:
    fails("holds no images", tmp_path, lambda: load(tmp_path))
    flat_image(tmp_path / "class" / "a.png", 1)
    flat_image(tmp_path / "b.png", 1)
    fails("both directly and in folders", tmp_path, lambda: load(tmp_path))


def test_paths_that_are_missing_or_of_an_unknown_kind(tmp_path: Path) -> None:
    fails("does not exist", tmp_path / "gone.npz", lambda: load(tmp_path / "gone.npz"))
    (tmp_path / "d.csv").write_text("1,2")
    fails("unknown kind", tmp_path / "d.csv", lambda: load(tmp_path / "d.csv"))


# --- CIFAR


def write_binary(path: Path, images: np.ndarray, labels: list[list[int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    records = np.concatenate([np.array(labels, np.uint8), images.reshape(len(images), -1)], axis=1)
    path.write_bytes(records.tobytes())


def write_pickle(path: Path, images: np.ndarray, labels: list[int], key: bytes = b"labels", protocol: int = 2) -> None:
    """As published: bytes keys, protocol 2, and (in the second half of numpy's life) the module's old name."""
    path.parent.mkdir(exist_ok=True)
    batch = {b"batch_label": b"batch", key: labels, b"data": images.reshape(len(images), -1), b"filenames": [b"a.png"]}
    path.write_bytes(pickle.dumps(batch, protocol).replace(b"cnumpy._core.", b"cnumpy.core."))


def test_cifar10_binary(tmp_path: Path) -> None:
    images = pixels(5)
    write_binary(tmp_path / "data_batch_2.bin", images[2:4], [[2], [3]])
    write_binary(tmp_path / "data_batch_1.bin", images[:2], [[0], [1]])
    write_binary(tmp_path / "test_batch.bin", images[4:], [[9]])
    data = load(tmp_path)
    np.testing.assert_array_equal(data.feeds["x"], normalised(images[:4]))
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3]
    test = load(tmp_path, split="test")
    np.testing.assert_array_equal(test.feeds["x"], normalised(images[4:]))
    assert test.labels is not None and test.labels.tolist() == [9]


def test_cifar100_binary_has_fine_labels(tmp_path: Path) -> None:
    write_binary(tmp_path / "train.bin", pixels(3), [[1, 50], [2, 60], [3, 99]])
    data = load(tmp_path)
    np.testing.assert_array_equal(data.feeds["x"], normalised(pixels(3)))
    assert data.labels is not None and data.labels.tolist() == [50, 60, 99]
    fails("no split 'test'.*train", tmp_path, lambda: load(tmp_path, split="test"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar_pickles(tmp_path: Path, protocol: int) -> None:
    images = pixels(4)
    write_pickle(tmp_path / "10" / "data_batch_1", images[:3], [3, 1, 2], protocol=protocol)
    write_pickle(tmp_path / "10" / "test_batch", images[3:], [8], protocol=protocol)
    data, test = load(tmp_path / "10"), load(tmp_path / "10", split="test")
    np.testing.assert_array_equal(data.feeds["x"], normalised(images[:3]))
    np.testing.assert_array_equal(test.feeds["x"], normalised(images[3:]))
    assert data.labels is not None and data.labels.tolist() == [3, 1, 2]
    assert test.labels is not None and test.labels.tolist() == [8]
    write_pickle(tmp_path / "100" / "train", images, [99, 0, 1, 2], b"fine_labels", protocol)
    fine = load(tmp_path / "100").labels
    assert fine is not None and fine.tolist() == [99, 0, 1, 2]


def test_cifar_pickle_in_fortran_order(tmp_path: Path) -> None:
    batch = {b"data": np.asfortranarray(pixels().reshape(6, -1)), b"labels": [0] * 6}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    np.testing.assert_array_equal(load(tmp_path).feeds["x"], normalised(pixels()))


def test_cifar_pickle_as_python_2_wrote_it(tmp_path: Path) -> None:
    # By hand: Python 2 wrote its strings, the array's bytes among them, with opcodes that Python 3 no longer writes.
    image = pixels(1).reshape(1, 3072)

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR(K\x01(K\x01M\x00\x0ct"
        b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff"
        b"\xff\xffK\x00tb\x89T" + (3072).to_bytes(4, "little") + image.tobytes() + b"tb"
    )
    content = b"\x80\x02}(" + string(b"data") + array + string(b"labels") + b"](K\x05eu."
    (tmp_path / "data_batch_1").write_bytes(content)
    data = load(tmp_path)
    np.testing.assert_array_equal(data.feeds["x"], normalised(pixels(1)))
    assert data.labels is not None and data.labels.tolist() == [5]


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_cifar_pickle_runs_no_code(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    content = pickle.dumps({b"data": Malice(tmp_path / "owned"), b"labels": [1]}, protocol=2)
    (data / "data_batch_1").write_bytes(content)
    fails("asks for '(posix|nt).system'", data / "data_batch_1", lambda: load(data))
    assert not (tmp_path / "owned").exists()
    pickle.loads(content)  # the file is a real danger
    assert (tmp_path / "owned").exists()


def test_cifar_pickle_allows_nothing_but_uint8(tmp_path: Path) -> None:
    write_pickle(tmp_path / "data_batch_1", np.zeros((1, 3072), object), [1])
    fails("array of 'O8'", tmp_path / "data_batch_1", lambda: load(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data_batch_1.bin", bytes(3072)),
        ("test_batch.bin", b""),
        ("train.bin", bytes(3073)),
        ("data_batch_1", b"no pickle"),
        ("data_batch_1", pickle.dumps([1, 2])),
        ("data_batch_1", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2)),
        ("test", pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, 2)),
        ("data_batch_1", pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, 4)),
        ("train", b""),
    ],
)
def test_cifar_file_that_is_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    split = "test" if name.startswith("test") else "train"
    fails("is damaged|is not a batch", tmp_path / name, lambda: load(tmp_path, split=split))


# --- CalibrationData


def data_of(n: int = 5) -> CalibrationData:
    return CalibrationData(
        {"x": np.arange(n * 2, dtype=np.float32).reshape(n, 2)}, np.arange(n, dtype=np.int32), "here"
    )


def test_data_is_cut_along_the_samples() -> None:
    data = data_of()
    assert len(data) == 5 and data.labels is not None and data.labels.dtype == np.int64
    first, rest = data.part(2)
    assert first.labels is not None and rest.labels is not None
    assert (first.labels.tolist(), rest.labels.tolist()) == ([0, 1], [2, 3, 4])
    np.testing.assert_array_equal(np.concatenate([first.feeds["x"], rest.feeds["x"]]), data.feeds["x"])
    assert (first.source, rest.source) == ("the first 2 of here", "those held back from here")
    assert data.head(9) is data and len(data.head(1)) == 1
    chunks = list(data.chunks(2))
    assert [labels.tolist() for _, labels in chunks if labels is not None] == [[0, 1], [2, 3], [4]]
    np.testing.assert_array_equal(chunks[2][0]["x"], [[8, 9]])


def test_data_is_split_and_drawn_at_random() -> None:
    data = data_of(40)
    parts = data.split(15, seed=1)
    labels = [part.labels.tolist() for part in parts if part.labels is not None]
    assert list(map(len, labels)) == [15, 25] and sorted(labels[0] + labels[1]) == list(range(40))
    assert all(own == sorted(own) for own in labels) and max(labels[0]) > 20
    drawn = data.draw(10, seed=1)
    assert drawn.labels is not None and len(set(drawn.labels)) == len(drawn) == 10 and max(drawn.labels) > 20
    np.testing.assert_array_equal(drawn.feeds["x"], data.feeds["x"][drawn.labels])
    assert drawn.digest() == data.draw(10, seed=1).digest() != data.draw(10, seed=2).digest()
    assert data.draw(40) is data


@pytest.mark.parametrize("action", ["head(0)", "split(0)", "split(5)", "part(0)", "part(5)", "draw(0)", "chunks(0)"])
def test_data_is_not_cut_to_nothing(action: str) -> None:
    name, value = re.fullmatch(r"(\w+)\((\d)\)", action).groups()  # type: ignore[union-attr]
    fails("here", None, lambda: getattr(data_of(), name)(int(value)), SettingsError)


@pytest.mark.parametrize(
    ("feeds", "labels", "match"),
    [
        ({}, None, "no samples"),
        ({"x": np.zeros((0, 2))}, None, "no samples"),
        ({"x": np.zeros((2, 2)), "y": np.zeros((3, 2))}, None, "x: 2, y: 3"),
        ({"x": np.zeros((2, 2))}, np.arange(3), "labels"),
        ({"x": np.zeros((2, 2))}, np.zeros(2), "labels are float64"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, np.nan])}, None, "input 'y'.*sample 1"),
        ({"x": np.array([0, -np.inf], np.float16)}, None, "input 'x'.*sample 1"),
    ],
)
def test_data_that_does_not_fit_together(feeds: dict[str, np.ndarray], labels: Any, match: str) -> None:
    fails(f"{match}.* here: ", None, lambda: CalibrationData(feeds, labels, "here"))


def test_digest_depends_on_all_but_the_source_and_memory_order() -> None:
    x, labels = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3)
    digest = CalibrationData({"x": x}, labels, "a").digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert CalibrationData({"x": np.asfortranarray(x)}, labels, "b").digest() == digest
    others = [
        CalibrationData({"y": x}, labels, "a"),
        CalibrationData({"x": x.reshape(3, 2, 2)}, labels, "a"),
        CalibrationData({"x": x.view(np.int32)}, labels, "a"),
        CalibrationData({"x": x + np.eye(3, 4, dtype=np.float32)}, labels, "a"),
        CalibrationData({"x": x}, labels[::-1], "a"),
        CalibrationData({"x": x}, None, "a"),
        CalibrationData({"x": x, "": labels}, None, "a"),
    ]
    assert len({other.digest() for other in others} | {digest}) == len(others) + 1


# --- Python readers


class Reader:
    """As users write them for onnxruntime: it may fill the same array again, and counts how often it is asked."""

    def __init__(self, batches: int, size: int = 2) -> None:
        self.asked, self.batches, self.buffer = 0, batches, np.zeros((size, 3), np.float32)

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.asked += 1
        if self.asked > self.batches:
            return None
        self.buffer[:] = self.asked
        return {"x": self.buffer}


@pytest.mark.parametrize(("samples", "expected", "asked"), [(None, [1, 1, 2, 2, 3, 3], 4), (3, [1, 1, 2], 2)])
def test_reader_is_read_as_far_as_needed(samples: int | None, expected: list[int], asked: int) -> None:
    reader = Reader(3)
    data = from_reader(reader, samples)
    assert data.feeds["x"][:, 0].tolist() == expected
    assert reader.asked == asked and data.labels is None
    assert data.source == f"{len(expected)} samples of a Python reader"


def test_iterables_of_arrays_dicts_and_pairs() -> None:
    a, b = np.ones((2, 3), np.float32), np.full((1, 3), 2, np.float32)
    both = np.concatenate([a, b])

    def generator() -> Iterator[np.ndarray]:
        yield from (a, b)

    for reader in (generator(), [[a], [b]], both):
        np.testing.assert_array_equal(from_reader(reader, input_name="x").feeds["x"], both)
    np.testing.assert_array_equal(from_reader({"x": both}).feeds["x"], both)
    for pairs in ([({"x": a}, [4, 5]), ({"x": b}, 6)], [[a, np.array([4, 5])], [b, np.array([6])]]):
        data = from_reader(pairs, input_name="x")
        np.testing.assert_array_equal(data.feeds["x"], both)
        assert data.labels is not None and data.labels.tolist() == [4, 5, 6]
    cut = from_reader([(a, [4, 5]), (b, [6])], 1, input_name="x").labels
    assert cut is not None and cut.tolist() == [4]


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("reader", "match"),
    [
        ([], "gave no samples"),
        (Reader(0), "gave no samples"),
        (5, "of type int"),
        ([X], "which input"),
        ([(X, X, X)], "3 parts"),
        ([{}], "is empty: give an array for each input"),
        ([{"x": X, "y": np.zeros(3)}], r"batch 0 .*x: \(2, 3\), y: \(3,\)"),
        ([{"x": np.float32(1)}], "row per sample"),
        ([({"x": X}, [1, 2, 3])], r"labels: \(3,\)"),
        ([{"x": X}, {"y": X}], "batch 1 .*differs from the first"),
        ([{"x": X}, {"x": X[:, :2]}], "batch 1 .*differs from the first"),
        ([{"x": X}, {"x": X.astype(np.float64)}], "float64.*differs from the first"),
        ([({"x": X}, [1, 2]), {"x": X}], "some batches only"),
        ([{"x": [[1, 2], [3]]}], "not made of arrays"),
        ([{"x": X * np.nan}], "NaN"),
    ],
)
def test_reader_that_cannot_be_used(reader: Any, match: str) -> None:
    fails(match, None, lambda: from_reader(reader, source="my reader"))
    fails("my reader", None, lambda: from_reader(reader, source="my reader"))


def test_reader_of_no_samples_is_refused() -> None:
    fails("0 samples", None, lambda: from_reader(Reader(1), 0), SettingsError)
