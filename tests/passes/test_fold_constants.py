"""Constant folding: what is computed from initializers becomes one, whatever the operators are."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from zoo import Builder, assert_same, images, run

from passes.normal_form.normalise import normalise


def standardised(b: Builder, outputs: int, inputs: int, form: str) -> str:
    """A weight with zero mean and unit variance for each output, computed in the graph as exporters write it."""
    weight = b.const(b.normal(outputs, inputs, 3, 3, scale=2.0) + 1, "weight")
    if form == "batchnorm":  # F.batch_norm(weight.reshape(1, O, -1), None, None, training=True), as timm writes it
        flat = b.node("Reshape", weight, b.const([1, outputs, -1]))
        given = [b.const(np.full(outputs, v, np.float32)) for v in (1, 0, 0, 1)]  # onnxruntime overwrites the last two
        flat = b.node("BatchNormalization", flat, *given, training_mode=1, outputs=3, epsilon=1e-6)
    else:
        flat = b.node("Reshape", weight, b.const([outputs, -1]))
        mean = b.node("ReduceMean", flat, axes=[1])
        centred = b.node("Sub", flat, mean)
        spread = b.node("Sqrt", b.node("ReduceMean", b.node("Mul", centred, centred), axes=[1]))
        flat = b.node("Div", centred, spread)
    return b.node("Reshape", flat, b.const([outputs, inputs, 3, 3]))


@pytest.mark.parametrize("form", ["batchnorm", "moments"])
def test_a_standardised_weight_becomes_a_constant(form: str, caplog: pytest.LogCaptureFixture) -> None:
    b = Builder()
    x = b.node("Conv", "input", standardised(b, 8, 3, form), pads=[1] * 4)
    proto = b.model(b.node("Conv", b.node("Relu", x), standardised(b, 4, 8, form), pads=[1] * 4))
    with caplog.at_level(logging.INFO):
        done = normalise(proto).finished()
    assert [n.op_type for n in done.graph.node] == ["Conv", "Relu", "Conv"]
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))
    assert not caplog.records


def test_a_batch_norm_of_a_constant_uses_its_given_statistics() -> None:
    b = Builder(opset=11)
    proto = b.model(b.node("Add", b.conv("input", 3, 4), b.batchnorm(b.const(b.normal(1, 4, 8, 8)), 4)))
    done = normalise(proto).finished()
    assert [n.op_type for n in done.graph.node] == ["Conv", "Add"]
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))


def test_a_split_weight_becomes_several_constants() -> None:
    b = Builder()
    name = b.node("Split", b.const(b.normal(8, 3, 3, 3)), outputs=2, axis=0)
    halves = [b.node("Conv", "input", part, pads=[1] * 4) for part in (name, name[:-1] + "1")]
    proto = b.model(b.node("Add", *halves))
    done = normalise(proto).finished()
    assert [n.op_type for n in done.graph.node] == ["Conv", "Conv", "Add"]
    assert_same(run(done, images(3, 8)), run(proto, images(3, 8)))


def test_random_numbers_stay_random() -> None:
    b = Builder()
    noise = b.node("RandomNormalLike", b.const(b.normal(1, 4, 8, 8)))
    proto = b.model(b.node("Add", b.conv("input", 3, 4), noise))
    assert "RandomNormalLike" in [n.op_type for n in normalise(proto).finished().graph.node]


def test_a_constant_that_is_an_output_stays_one() -> None:
    b = Builder()
    name = b.node("Split", b.const(b.normal(8, 3)), outputs=2, axis=0)
    proto = b.model({b.conv("input", 3, 4): ["N", 4, 8, 8], name: [4, 3]})
    done = normalise(proto).finished()
    assert list(done.graph.output) == list(proto.graph.output)
    for found, expected in zip(run(done, images(2, 8)), run(proto, images(2, 8)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_large_and_computed_from_little_stays_computed() -> None:
    """The second output of TopK over an Expand: folding it would add a megabyte to the file."""
    b = Builder()
    wide = b.node("Expand", b.const(np.float32(1)), b.const([1, 4, 400, 400]))
    y = b.node("Add", b.conv("input", 3, 4, 1), wide)
    proto = b.model(y, inputs=("N", 3, 400, 400))
    done = normalise(proto).finished()
    assert onnx.numpy_helper.to_array(done.graph.initializer[0]).size < 1000
    assert len(done.SerializeToString()) < 10_000
