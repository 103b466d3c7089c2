"""Image folders as people have them: splits, nested classes, label maps, files that cannot be read, odd names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calib.data.folder import open_folder
from calib.data.labels import Labelling, read_label_map
from calib.data.preprocess import Preprocess
from calib.data.readers import Selection, open_source, read, splits
from passes.core.errors import DataError

PLAIN = Preprocess(size=None, resize=None, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path)
    return path


def load(path: Path, **changes: Any) -> Any:
    return read(path, **({"input_name": "x", "input_shape": (None, 3, 4, 4), "preprocess": PLAIN} | changes))


def levels(data: Any) -> list[int]:
    return [int(v) for v in data.feeds["x"][:, 0, 0, 0].round()]


# --- splits and classes


@pytest.mark.parametrize(("train", "test"), [("train", "val"), ("training", "testing"), ("train", "validation")])
def test_train_and_val_are_splits_and_their_classes_one_set(tmp_path: Path, train: str, test: str) -> None:
    for value, name in enumerate(["ant", "bee", "cat"]):
        put(tmp_path / train / name / "a.png", value)
    put(tmp_path / test / "cat" / "a.png", 9)
    assert splits(tmp_path) == ("train", "test")
    data = load(tmp_path)
    assert levels(data) == [0, 1, 2] and data.labels.tolist() == [0, 1, 2]
    held = load(tmp_path, selection=Selection(split="test"))
    assert levels(held) == [9] and held.labels.tolist() == [2]  # not 0, though it is the only class here
    assert held.origin.classes == {0: "ant", 1: "bee", 2: "cat"}


def test_classes_that_are_named_like_splits_beside_others_are_classes(tmp_path: Path) -> None:
    for name in ("car", "train"):
        put(tmp_path / name / "a.png")
    assert splits(tmp_path) == () and load(tmp_path).labels.tolist() == [0, 1]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    put(tmp_path / "val" / "cat" / "a.png")
    with pytest.raises(DataError, match="has no split 'train': it has test: give"):
        load(tmp_path)
    assert load(tmp_path, selection=Selection(split="val")).labels.tolist() == [0]


def test_images_in_folders_within_a_class(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "b.png", 1)
    put(tmp_path / "cat" / "more" / "a.png", 2)
    put(tmp_path / "dog" / "x" / "y" / "a.png", 3)
    data = load(tmp_path)
    assert levels(data) == [1, 2, 3] and data.labels.tolist() == [0, 0, 1]


def test_the_names_of_class_folders_are_kept(tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        put(tmp_path / name / "a.png")
    origin = load(tmp_path, labelling=Labelling(offset=1)).origin
    assert origin.classes == {1: "ant", 2: "zebra"} and not origin.mapped
    assert origin.places.tolist() == [0, 1]


# --- numbers of classes


def test_an_offset_is_added_to_all_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 3, 4, 4), np.uint8), labels=[0, 5, 2])
    assert load(tmp_path / "d.npz", labelling=Labelling(offset=1)).labels.tolist() == [1, 6, 3]
    with pytest.raises(DataError, match=r"`labels_offset` -1 makes label 0 of .* -1: give 0 or more"):
        load(tmp_path / "d.npz", labelling=Labelling(offset=-1))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"cat": 7, "big dog": 3}),
        "cat 7\nbig dog 3\n",
        "# classes\ncat,7\n\nbig dog,3",
        "cat: 7\nbig dog: 3",
        "cat\t7\nbig dog\t3",
    ],
)
def test_a_label_map_gives_each_folder_its_number(tmp_path: Path, text: str) -> None:
    (tmp_path / "map").write_text(text)
    names = read_label_map(tmp_path / "map")
    assert names == {"cat": 7, "big dog": 3}
    for name in names:
        put(tmp_path / "images" / name / "a.png")
    data = load(tmp_path / "images", labelling=Labelling(names=names))
    assert data.labels.tolist() == [3, 7] and data.origin.mapped  # the files stay in the order of their folders
    put(tmp_path / "images" / "emu" / "a.png")
    with pytest.raises(DataError, match=r"'emu'.*is not in the label map \(1 of 3 are not\)"):
        load(tmp_path / "images", labelling=Labelling(names=names))


def test_a_label_map_of_names_alone_numbers_them(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("cat\nbig dog\n")
    assert read_label_map(tmp_path / "map.txt") == {"cat": 0, "big dog": 1}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        ("cat 1\ndog", "'dog' .*has no class number"),
        ("cat 1\ncat 2", "'cat' .*twice"),
        ("{", "not valid JSON"),
        ('{"cat": "1"}', "class number"),
        ('["cat"]', "class number"),
        ('{"cat": -1}', "class number"),
    ],
)
def test_a_label_map_that_is_none(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(DataError, match=match):
        read_label_map(tmp_path / "map")


def test_a_label_map_where_there_are_no_folders(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "a.png")
    np.save(tmp_path / "d.npy", np.zeros((2, 3, 4, 4), np.uint8))
    for path in (tmp_path / "flat", tmp_path / "d.npy"):
        with pytest.raises(DataError, match="no class folders that `label_map`"):
            load(path, labelling=Labelling(names={"cat": 0}))
    with pytest.raises(DataError, match="cannot read the label map"):
        read_label_map(tmp_path / "gone")


# --- kinds of files


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.TIFF"])
def test_gif_and_tiff(tmp_path: Path, name: str) -> None:
    first, second = (Image.new("RGB", (4, 4), (v,) * 3) for v in (51, 200))
    first.save(tmp_path / name, save_all=True, append_images=[second])  # of several frames the first is taken
    assert levels(load(tmp_path)) == [51]


def test_npy_of_images_and_of_ready_floats(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.save(tmp_path / "d.npy", pixels)
    np.testing.assert_array_equal(load(tmp_path / "d.npy").feeds["x"].round(), pixels.transpose(0, 3, 1, 2))
    np.save(tmp_path / "d.npy", pixels.transpose(0, 3, 1, 2) / 255)
    np.testing.assert_array_equal(load(tmp_path / "d.npy").feeds["x"], np.float32(pixels.transpose(0, 3, 1, 2) / 255))
    (tmp_path / "d.npy").write_bytes(b"none")
    with pytest.raises(DataError, match=r"cannot read .* as an \.npy file"):
        load(tmp_path / "d.npy")


def test_unreadable_files_are_refused_or_left_out_and_named(tmp_path: Path) -> None:
    for i in range(8):
        put(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    for bad in ("a/0.png", "b/5.png"):
        (tmp_path / bad).write_bytes(b"no image")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b" / "7.png")
    with pytest.raises(DataError, match=r"cannot decode.*0\.png.*`skip_unreadable`"):
        load(tmp_path)
    data = load(tmp_path, selection=Selection(skip_unreadable=True))
    assert levels(data) == [2, 4, 6, 1, 3] and data.labels.tolist() == [0, 0, 0, 1, 1]
    assert [Path(file).name for file in data.origin.skipped] == ["0.png", "5.png", "7.png"]
    assert "3 of them unreadable and left out, first" in data.source and "0.png'" in data.source
    assert data.origin.places.tolist() == [1, 2, 3, 4, 5]


def test_nothing_but_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        load(tmp_path, selection=Selection(skip_unreadable=True))


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    put(folder / "a\udcfe.png", 7)
    data = load(folder)
    assert levels(data) == [7]
    assert "\\xff" in data.source and data.source.encode()  # can be printed and written
    assert len(open_folder(folder).digest()) == 64
    (folder / "a\udcfe.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"\\xff/a\\xfe\.png") as caught:
        load(folder)
    assert str(caught.value).encode()


def test_the_home_of_nobody() -> None:
    for action in (lambda: load(Path("~nosuch/x")), lambda: splits("~nosuch/x")):
        with pytest.raises(DataError, match="'~nosuch/x' begins with the home of a user that is not known"):
            action()


def test_a_bad_sample_is_counted_in_the_file(tmp_path: Path) -> None:
    values = np.zeros((100, 3, 4, 4), np.float32)
    values[70:] = np.nan
    np.savez(tmp_path / "d.npz", x=values)
    chosen = Selection(10, seed=1)
    first = next(i for i in chosen.of(100) if i >= 70)
    with pytest.raises(DataError, match=f"in sample {first} of '.*d.npz'"):
        load(tmp_path / "d.npz", selection=chosen)


# --- other orders and types of what comes out


def test_bgr_turns_the_channels_after_all_else(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    how = Preprocess((4, 4), None, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), order="bgr")
    turned = Preprocess((4, 4), None, (0.3, 0.2, 0.1), (0.7, 0.6, 0.5))
    np.testing.assert_array_equal(how.apply(image), turned.apply(image)[::-1])


def test_bytes_for_a_network_that_takes_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    how = Preprocess(None, None, (0.0,) * 3, (1.0,) * 3, "NHWC", dtype=np.dtype(np.uint8))
    assert how.apply(image).dtype == np.uint8
    np.testing.assert_array_equal(how.apply(image), image)


def test_draws_of_unlabelled_sources_keep_working(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 3)
    source = open_source(tmp_path, input_name="x", input_shape=(None, 3, 4, 4), preprocess=PLAIN)
    assert len(source) == 1 and source.labels is None
