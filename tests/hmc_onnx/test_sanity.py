"""What looks wrong about data: each fault gives its own finding, and data that are right give none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.data.calibration import CalibrationData, Origin
from hmc_onnx.analysis.input_arithmetic import input_arithmetic
from hmc_onnx.analysis.model_inputs import load_data, preprocessing
from hmc_onnx.analysis.sanity import findings
from hmc_onnx.records.images import Images

RNG = np.random.default_rng(0)


def network(*first: tuple[str, Any], transposed: bool = False) -> onnx.ModelProto:
    """A Conv after some arithmetic on the input by constants."""
    nodes, initializers, name = [], [], "x"
    for index, (op, value) in enumerate(first):
        initializers.append(numpy_helper.from_array(np.asarray(value, np.float32), f"c{index}"))
        nodes.append(helper.make_node(op, [name, f"c{index}"], [f"t{index}"]))
        name = f"t{index}"
    if transposed:
        nodes.append(helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
        name = "planes"
    initializers.append(numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w"))
    nodes.append(helper.make_node("Conv", [name, "w"], ["y"]))
    shape = ["N", 8, 8, 3] if transposed else ["N", 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def data(
    n: int = 100,
    labels: Any = None,
    options: dict[str, Any] | None = None,
    **origin: Any,
) -> CalibrationData:
    """Images of noise, preprocessed, and where they are from."""
    how = preprocessing(**({"preset": "imagenet", "size": (8, 8)} if options is None else options))
    x = how.apply_batch(np.random.default_rng(1).integers(0, 256, (n, 3, 8, 8), np.uint8))
    labels = None if labels is None else np.asarray(labels)
    return CalibrationData({"x": x}, labels, "'d'", Origin("d", np.arange(n), how, **origin))


def answers(classes: Any, width: int = 10, sure: float = 3.0) -> np.ndarray:
    """Scores whose largest is at some classes."""
    scores = np.random.default_rng(2).normal(0, 0.3, (len(classes), width))
    scores[np.arange(len(classes)), classes] += sure
    return scores


LABELS = np.arange(100) % 10
MOSTLY = np.where(np.arange(100) % 5 == 0, (LABELS + 3) % 10, LABELS)  # right on 80 of 100


def codes(*args: Any, **kwargs: Any) -> list[str]:
    found = findings(*args, **kwargs)
    for finding in found:  # one sentence each
        assert "\n" not in finding.sentence and not re.search(r"[.!?](\s|$)", finding.sentence)
    return [finding.code for finding in found]


def test_right_data_give_no_finding() -> None:
    folders = {i: f"c{i}" for i in range(10)}
    assert codes(network(), data(labels=LABELS, classes=folders), answers(MOSTLY)) == []
    assert codes(network(), data(), answers(MOSTLY)) == []
    assert codes(network(), data(labels=LABELS)) == []
    caffe = {"channels": "bgr", "scale": 1, "mean": (103.939, 116.779, 123.68)}
    assert codes(network(), data(options=caffe), answers(MOSTLY)) == []
    assert codes(network(("Sub", 127.5), ("Div", 128)), data(options={"scale": 1}), answers(MOSTLY)) == []
    assert codes(network(("Div", 255.0)), data(options={"scale": 1}), answers(MOSTLY)) == []


def test_a_network_that_guesses() -> None:
    guesses = np.random.default_rng(3).integers(0, 10, 100)
    assert codes(network(), data(labels=LABELS), answers(guesses)) == ["near_chance"]
    better = np.where(np.arange(100) % 3 == 0, LABELS, guesses)  # a third right by more than luck
    assert codes(network(), data(labels=LABELS), answers(better)) == []
    assert codes(network(), data(15, labels=LABELS[:15]), answers(guesses[:15])) == []  # too few to say


@pytest.mark.parametrize("offset", [1, -1])
def test_labels_that_are_one_off(offset: int) -> None:
    labels = np.arange(100) % 9 + (offset < 0)
    (finding,) = findings(network(), data(labels=labels), answers(labels + offset))
    assert finding.code == "near_chance" and f"add {offset} to `labels_offset`" in finding.sentence


def test_labels_in_another_order() -> None:
    permuted = np.roll(np.arange(10), 3)[LABELS]
    (finding,) = findings(network(), data(labels=LABELS), answers(permuted))
    assert finding.code == "near_chance" and "give a `label_map`" in finding.sentence
    swapped = findings(network(), data(labels=LABELS % 2), answers(1 - LABELS % 2, width=2))
    assert [f.code for f in swapped] == ["near_chance"]


def test_all_of_one_class() -> None:
    folders = {i: f"c{i}" for i in range(10)} | {3: "c3 cat"}
    found = findings(network(), data(labels=np.full(100, 3), classes=folders), answers(np.full(100, 3)))
    assert [f.code for f in found] == ["one_label"] and "class 3 ('c3 cat')" in found[0].sentence
    assert codes(network(), data(), answers(np.full(100, 3))) == ["one_answer"]
    assert codes(network(), data(labels=LABELS), answers(np.full(100, 3)))[0] == "one_answer"


def test_answers_that_are_too_unsure_or_too_sure() -> None:
    assert codes(network(), data(), answers(MOSTLY, sure=0.5) * 0.1) == ["entropy_high"]
    assert codes(network(), data(), answers(MOSTLY, sure=100)) == ["entropy_low"]
    probabilities = np.full((100, 10), 0.1)
    probabilities[np.arange(100), MOSTLY] += 1e-6
    assert codes(network(), data(), probabilities / probabilities.sum(1, keepdims=True)) == ["entropy_high"]


@pytest.mark.parametrize(
    ("count", "labels", "code", "fatal"),
    [
        (9, LABELS % 9, "background_class", False),
        (7, LABELS % 7, "folders_missing", False),
        (11, np.arange(100) % 11, "labels_out_of_range", True),
    ],
)
def test_class_folders_against_the_head(count: int, labels: np.ndarray, code: str, fatal: bool) -> None:
    folders = {i: f"c{i:02}" for i in range(count)}
    found = findings(network(), data(labels=labels, classes=folders), answers(labels % 10))
    assert (found[0].code, found[0].fatal) == (code, fatal)
    if not fatal:
        assert codes(network(), data(labels=labels, classes=folders, mapped=True), answers(labels)) == []


def test_labels_that_count_from_one() -> None:
    (first, *_) = findings(network(), data(labels=LABELS + 1), answers(LABELS))
    assert first.fatal and "add -1 to `labels_offset`" in first.sentence


def test_folders_whose_order_depends_on_capitals() -> None:
    folders = dict(enumerate(["Dog", "ant", "bee", "cat", *"efghij"]))
    found = findings(network(), data(labels=LABELS, classes=folders), answers(MOSTLY))
    assert [f.code for f in found] == ["folder_case"] and "'Dog'" in found[0].sentence


def test_mean_of_another_scale_than_the_pixels() -> None:
    unscaled = {"scale": 1, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    (finding,) = findings(network(), data(options=unscaled))
    assert finding.code == "values_large" and "set `scale` to 255" in finding.sentence
    pixels = RNG.integers(0, 256, (100, 3, 8, 8))
    flat = CalibrationData({"x": np.float32((pixels / 255 - 123.7) / 58.4)}, None, "a reader")
    assert codes(network(), flat) == ["values_flat"]
    raw = CalibrationData({"x": pixels.astype(np.float32)}, None, "a reader")
    assert codes(network(), raw) == ["values_large"]
    assert codes(network(), data(options={"scale": 1})) == ["values_large"]


def test_an_image_with_extreme_values_is_named() -> None:
    values = np.float32(RNG.normal(size=(300, 3, 8, 8)))
    values[290, 0, 1, 1] = -3e38
    (finding,) = findings(network(), CalibrationData({"x": values}, None, "a reader"))
    assert finding.code == "values_apart" and finding.fatal
    assert "1 of 300 images of input 'x', the first of them image 290, hold values up to 3e+38" in finding.sentence
    origin = Origin("a file", np.arange(300) + 1000)
    (finding,) = findings(network(), CalibrationData({"x": values}, None, "a file", origin))
    assert "the first of them image 1290," in finding.sentence
    drawn, whole = (CalibrationData({"x": part}, None, "a file") for part in (values[:9], values))
    (finding,) = findings(network(), drawn, None, whole)
    assert finding.code == "values_apart"  # others than those that were drawn count, too
    values[290] = 1000
    (finding,) = findings(network(), CalibrationData({"x": values}, None, "a reader"))
    assert finding.code == "values_apart" and not finding.fatal
    values[290] = 30  # where others reach 4
    assert codes(network(), CalibrationData({"x": values}, None, "a reader")) == []


def test_normalisation_that_the_graph_does_already() -> None:
    mean = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    (finding,) = findings(network(("Sub", mean), ("Div", mean)), data())
    assert finding.code == "normalised_twice" and "set `scale` to 255" in finding.sentence
    (finding,) = findings(network(("Mul", 1 / 127.5), ("Add", -1.0)), data())
    assert finding.code == "normalised_twice" and "set `scale` to 1" in finding.sentence
    for first in ([("Div", 255.0)], [("Sub", 127.5), ("Div", 128.0)]):
        (finding,) = findings(network(*first), data(options={}))
        assert finding.code == "scaled_twice" and "set `scale` to 1" in finding.sentence


def test_the_arithmetic_of_an_input_is_followed() -> None:
    mean = np.array([104.0, 117.0, 123.0])
    proto = network(("Sub", mean), ("Div", 58.0), transposed=True)
    found = input_arithmetic(proto, "x")
    assert found.operators == ("Sub", "Div")
    np.testing.assert_allclose(found.factor * 200 + found.shift, (200 - mean) / 58, rtol=1e-6)
    assert found.mean == pytest.approx(mean.mean())
    assert input_arithmetic(network(), "x").operators == ()


def test_ready_floats_switch_the_preset_off(tmp_path: Path) -> None:
    pixels = RNG.random((20, 3, 8, 8), np.float32)
    np.savez(tmp_path / "d.npz", train_images=pixels)
    read = load_data(network(), tmp_path / "d.npz", preprocessing("imagenet", size=(8, 8)), samples=None)
    assert codes(network(), read) == ["ready_floats"]
    read = load_data(network(), tmp_path / "d.npz", preprocessing(), samples=None)
    assert codes(network(), read) == []


def test_files_that_were_left_out_are_counted(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
    for name in ("0.png", "4.png"):
        (tmp_path / name).write_bytes(b"no image")
    read = load_data(network(), tmp_path, Images(skip_unreadable=True), samples=None)
    assert len(read) == 4
    (finding,) = findings(network(), read)
    assert finding.code == "skipped" and "2 images" in finding.sentence and "0.png'" in finding.sentence


def test_the_page_names_every_check() -> None:
    root = Path(__file__).parents[2]
    known = re.findall(r'code="(\w+)"', (root / "hmc_onnx" / "analysis" / "sanity.py").read_text(encoding="utf-8"))
    page = (root / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    assert len(set(known)) >= 14 and all(f"`{code}`" in page for code in known)
