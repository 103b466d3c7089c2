"""Calibration and test data that cannot be read or do not fit the model: one sentence, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli, Refuses, pixels
from PIL import Image
from zoo import images

pytestmark = pytest.mark.usefixtures("few_iterations")


def archive(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.savez(path, **arrays)

    return write


BAD_ARCHIVES = {
    "floats of wrong size": (archive(input=images(8, 9)), ("(3, 9, 9)", "'input' takes (3, 8, 8)", "store")),
    "floats in NHWC": (archive(input=images(8, 8).transpose(0, 2, 3, 1)), ("(8, 8, 3)", "takes (3, 8, 8)", "store")),
    "images of wrong size": (archive(images=pixels(8, 3, 9, 9)), ("(3, 9, 9)", "takes (3, 8, 8)", "set --size")),
    "images of two channels": (archive(images=pixels(8, 2, 8, 8)), ("(8, 2, 8, 8)", "store images as (N, C, H, W)")),
    "flat images": (archive(images=pixels(8, 192)), ("(8, 192)", "store images as (N, C, H, W)")),
    "int32 images": (archive(images=pixels(8, 3, 8, 8).astype(np.int32)), ("is int32", "store images as uint8")),
    "int32 tensors": (archive(input=pixels(8, 3, 8, 8).astype(np.int32)), ("is int32", "store images as uint8")),
    "text": (archive(images=np.array(["a", "b"])), ("'images' of 'data.npz' is <U1", "store images as uint8")),
    "objects": (archive(images=np.array([{}, 1], object)), ("cannot read 'data.npz'", "write it with numpy.savez")),
    "NaN": (
        archive(input=np.full((8, 3, 8, 8), np.nan, np.float32)),
        ("holds NaN", "sample 0", "leave that sample out"),
    ),
    "infinity": (archive(input=np.full((8, 3, 8, 8), 1e300)), ("infinity in sample 0", "leave that sample out")),
    "no arrays": (archive(), ("'data.npz' has no images among its keys", "store them as 'images'")),
    "other arrays": (archive(pictures=pixels(8, 3, 8, 8)), ("no images among its keys (pictures)", "store them as")),
    "no images": (archive(images=pixels(0, 3, 8, 8)), ("'images' of 'data.npz' is empty", "store at least one")),
    "only one image": (archive(images=pixels(1, 3, 8, 8)), ("all samples are alike in 1 images", "more images")),
    "black images": (archive(images=0 * pixels(8, 3, 8, 8)), ("all samples are alike in 8 images", "which differ")),
    "only a test split": (
        archive(test_images=pixels(8, 3, 8, 8)),
        ("has no split 'train'", "it has test: add 'train_images'"),
    ),
    "labels too few": (
        archive(images=pixels(8, 3, 8, 8), labels=np.arange(3)),
        ("'labels' of 'data.npz'", "each of the 8"),
    ),
    "labels of floats": (
        archive(images=pixels(8, 3, 8, 8), labels=np.arange(8.0)),
        ("is float64", "one integer for each"),
    ),
    "labels too high": (
        archive(images=pixels(8, 3, 8, 8), labels=np.arange(8)),
        ("from 0 to 7", "5 classes", "--no-labels"),
    ),
    "labels below 0": (
        archive(images=pixels(8, 3, 8, 8), labels=-np.arange(8)),
        ("from -7 to 0", "5 classes", "--no-labels"),
    ),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_data_that_do_not_fit(compress: Refuses, here: Path, what: str) -> None:
    write, says = BAD_ARCHIVES[what]
    write(here / "data.npz")
    compress(data="data.npz", says=("data.npz", *says))


def test_data_in_another_layout_than_the_model(compress: Refuses, given: Path) -> None:
    for data in ("splits.npz", "flat"):
        says = ("(8, 8, 3)", "'input' takes (3, 8, 8)", "set --layout NCHW")
        compress("--layout", "NHWC", data=given / data, says=says)


def test_a_preset_of_another_size_than_the_model(compress: Refuses, given: Path) -> None:
    compress("--preset", "cifar10", says=("(3, 32, 32)", "takes (3, 8, 8)", "set --size or --preset"))


def test_files_that_are_no_data(compress: Refuses, given: Path, here: Path) -> None:
    whole = (given / "splits.npz").read_bytes()
    np.save(here / "array.npy", images(8, 8))
    for content in (
        b"",
        b"text",
        whole[:1000],
        whole[:500] + bytes(500) + whole[1000:],
        (here / "array.npy").read_bytes(),
    ):
        (here / "data.npz").write_bytes(content)
        compress(data="data.npz", says=("cannot read 'data.npz' as an .npz file", "write it with numpy.savez"))
    for other in (given / "model.onnx", given / "flat" / "0.png"):
        compress(data=other, says=(f"'{other}' is of an unknown kind", "give an .npz"))


def test_no_data_and_missing_data(compress: Refuses, refuses: Refuses, given: Path) -> None:
    missing = ("'nothing' does not exist", "give an .npz or .npy file, a folder of images or a CIFAR folder")
    compress(data="nothing", says=missing)
    compress("--test-data", "nothing", says=missing)
    model = given / "model.onnx"
    refuses("verify", model, model, "--data", "nothing", says=missing)
    compress(data=None, says=("--data is missing", "give it on the command line or in the --config file"))
    refuses("verify", model, model, says="--data is missing")
    refuses("profile", model, "-o", "profile.json", says="--data is missing")


def test_folders_without_usable_images(compress: Refuses, here: Path) -> None:
    (here / "data").mkdir()
    compress(data="data", says=("'data' holds no images", "give a folder of images"))
    (here / "data" / "empty class").mkdir()
    (here / "data" / "notes.txt").write_text("no image")
    compress(data="data", says=("'data' holds no images", "give a folder of images"))
    (here / "data" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    compress(
        data="data",
        says=("cannot decode image 'data/a.png'", "replace it, take it out of the folder, or set --skip-unreadable"),
    )
    Image.fromarray(pixels(8, 8, 3)).save(here / "data" / "a.png")
    whole = (here / "data" / "a.png").read_bytes()
    (here / "data" / "b.png").write_bytes(whole[: len(whole) // 2])
    compress(
        data="data",
        says=("cannot decode image 'data/b.png'", "replace it, take it out of the folder, or set --skip-unreadable"),
    )
    Image.fromarray(pixels(9, 9, 3)).save(here / "data" / "b.png")
    compress(data="data", says=("'data/b.png' comes out as (3, 9, 9)", "set --size or --preset"))
    Image.fromarray(pixels(8, 8).astype(np.uint16) * 256).save(here / "data" / "b.png")
    compress(data="data", says=("cannot use image 'data/b.png'", "save it with 8 bits a channel"))


def test_bad_test_data_is_refused_before_the_work(cli: Cli, given: Path, here: Path) -> None:
    np.savez(here / "nan.npz", input=np.full((8, 3, 8, 8), np.nan, np.float32))
    np.savez(here / "labels.npz", images=pixels(8, 3, 8, 8), labels=np.arange(8))
    for test in ("nan.npz", "labels.npz", "nothing.npz"):
        arguments = ["--data", given / "plain.npz", "--test-data", test, "--target", "macs=0.6"]
        done = cli("compress", given / "model.onnx", "-o", "out.onnx", *arguments)
        assert done.code == 1
        assert done.err.splitlines() == done.errors
        assert test in done.errors[0]


def test_labels_outside_the_classes_do_not_matter_without_labels(cli: Cli, given: Path, here: Path) -> None:
    np.savez(here / "labels.npz", images=pixels(8, 3, 8, 8), labels=np.arange(8))
    model = given / "model.onnx"
    assert cli("verify", model, model, "--data", "labels.npz").code == 1
    assert cli("verify", model, model, "--data", "labels.npz", "--no-labels").code == 0
    given_ = ["compress", model, "-o", "out.onnx", "--data", "labels.npz", "--target", "macs=0.6"]
    assert cli(*given_).code == 1
    assert cli(*given_, "--no-labels").code == 0
