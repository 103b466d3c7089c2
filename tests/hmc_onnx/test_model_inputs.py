"""Data that fit a model: inputs of other types, several inputs, and what Python users give by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import hmc_onnx
from hmc_onnx.analysis.inspection import closed_shapes
from hmc_onnx.analysis.model_inputs import fit, load_data, noise, preprocessing
from hmc_onnx.records.images import Images
from passes.core.errors import DataError, ModelError, SettingsError


def model(**inputs: tuple[int, list[Any]]) -> onnx.ModelProto:
    """A model that does nothing with its inputs."""
    values = [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    outputs = [helper.make_tensor_value_info(f"{v.name}_out", inputs[v.name][0], None) for v in values]
    graph = helper.make_graph(nodes, "g", values, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


BYTES = model(image=(TensorProto.UINT8, ["N", 8, 8, 3]))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


def test_bytes_under_the_inputs_name_are_fed_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=PIXELS, labels=np.arange(6))
    data = load_data(BYTES, tmp_path / "d.npz", preprocessing(), samples=None)
    assert data.feeds["image"].dtype == np.uint8 and data.labels is not None
    np.testing.assert_array_equal(data.feeds["image"], PIXELS)
    signed = model(image=(TensorProto.INT8, ["N", 8, 8, 3]))
    np.savez(tmp_path / "d.npz", image=PIXELS.view(np.int8))
    read = load_data(signed, tmp_path / "d.npz", preprocessing(), samples=4)
    assert read.feeds["image"].dtype == np.int8 and len(read) == 4


def test_images_become_bytes_for_a_network_that_takes_bytes(tmp_path: Path) -> None:
    for i, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = load_data(BYTES, tmp_path, preprocessing(layout="NHWC"), samples=None)
    np.testing.assert_array_equal(data.feeds["image"], PIXELS)
    with pytest.raises(SettingsError, match=r"takes pixels as they are.*leave `preset`"):
        load_data(BYTES, tmp_path, preprocessing("imagenet", layout="NHWC", size=(8, 8)), samples=None)
    with pytest.raises(DataError, match="set `layout='NHWC'`"):
        load_data(BYTES, tmp_path, preprocessing(), samples=None)
    signed = model(image=(TensorProto.INT8, ["N", 8, 8, 3]))
    with pytest.raises(DataError, match="cannot be made into the int8"):
        load_data(signed, tmp_path, Images(layout="NHWC", skip_unreadable=True), samples=None)


def test_an_archive_with_every_input(tmp_path: Path) -> None:
    proto = model(a=(TensorProto.FLOAT, ["N", 3]), b=(TensorProto.INT64, ["N"]))
    a, b = np.random.default_rng(0).random((20, 3), np.float32), np.arange(20)
    np.savez(tmp_path / "d.npz", a=a, b=b, labels=b % 2)
    data = load_data(proto, tmp_path / "d.npz", Images(labels_offset=1), samples=5, seed=3)
    chosen = data.feeds["b"]
    assert len(chosen) == 5 and data.labels is not None
    np.testing.assert_array_equal(data.feeds["a"], a[chosen])
    np.testing.assert_array_equal(data.labels, chosen % 2 + 1)
    np.savez(tmp_path / "e.npz", a=a)
    with pytest.raises(DataError, match=r"no array for the model's input 'b' among its keys \(a\)"):
        load_data(proto, tmp_path / "e.npz", Images(), samples=None)
    with pytest.raises(DataError, match=r"not an \.npz file, and the model has 2 inputs \(a, b\)"):
        load_data(proto, tmp_path, Images(), samples=None)
    np.savez(tmp_path / "f.npz", a=a, b=b[:4])
    with pytest.raises(DataError, match="differ in their number of samples"):
        load_data(proto, tmp_path / "f.npz", Images(), samples=None)


FLOATS = model(x=(TensorProto.FLOAT, ["N", 3, 8, 8]))


def test_an_image_without_a_batch_axis() -> None:
    image = np.zeros((3, 8, 8), np.float32)
    for given in (image, [image, image], iter([image])):
        with pytest.raises(DataError, match=r"no batch axis: give arrays of shape \(N, 3, 8, 8\)"):
            fit(FLOATS, given)
    assert len(fit(FLOATS, [image[None], image[None]])) == 2


def test_a_path_in_place_of_arrays(tmp_path: Path) -> None:
    for path in (str(tmp_path), tmp_path):
        with pytest.raises(DataError, match=r"given as the path .*hmc_onnx\.load_data"):
            fit(FLOATS, path)


def test_an_endless_reader_is_read_as_far_as_asked() -> None:
    asked = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            asked.append(1)
            yield np.random.default_rng(len(asked)).random((4, 3, 8, 8), np.float32)

    assert len(fit(FLOATS, endless(), 10)) == 10 and len(asked) == 3


def test_noise_for_bytes_has_all_values() -> None:
    made = noise(BYTES, {"image": (4, 8, 8, 3)}).feeds["image"]
    assert made.dtype == np.uint8 and made.min() < 10 and made.max() > 245


def test_an_input_that_is_no_image_is_not_asked_for_height_and_width() -> None:
    audio = model(frames=(TensorProto.FLOAT, ["N", "T", 80]))
    with pytest.raises(ModelError, match=r"leaves axes of its input 'frames' open \(1, \?, 80\)") as caught:
        closed_shapes(audio)
    assert "HEIGHT" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "mnist"}, "`preset` mnist: input should be 'cifar10' or 'imagenet'"),
        ({"channels": "gbr"}, "`channels` gbr"),
        ({"scale": 0}, "`scale` 0"),
        ({"scales": 1}, "Images has no option 'scales': did you mean 'scale'"),
        ({"mean": (123.7, 116.3, 103.5)}, "above 1, the largest value.*set `scale` to 1"),
        ({"mean": (0.5, 0.5)}, "`mean` .*three values"),
        ({"preset": "imagenet", "mean": (0.5,)}, "`mean` .*three values"),
    ],
)
def test_options_of_preprocessing_that_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        hmc_onnx.preprocessing(**options)


def test_one_mean_is_for_gray_images() -> None:
    assert hmc_onnx.preprocessing(mean=(0.5,)).apply(np.zeros((4, 4, 3), np.uint8)).shape == (1, 4, 4)
    assert hmc_onnx.preprocessing("cifar10", mean=(0.5,), std=(0.2,)).channels == 1
