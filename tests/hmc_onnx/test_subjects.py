"""What is found to be compressed."""

from __future__ import annotations

import numpy as np
from zoo import Builder

from hmc_onnx.analysis.subjects import find_subjects
from passes.normal_form.normalise import normalise


def test_a_gate_of_dense_layers_in_nhwc_leaves_the_channels_open() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    gate = b.mean(b.node("Transpose", x, perm=[0, 2, 3, 1]), (1, 2), keepdims=1)
    gate = b.node("Relu", b.matmul(gate, 8, 4, at="down"))
    gate = b.node("Sigmoid", b.matmul(gate, 4, 8, at="up"))
    x = b.node("Mul", x, b.node("Transpose", gate, perm=[0, 3, 1, 2]))
    model = normalise(b.model(b.conv(x, 8, 4, at="head")))
    found = find_subjects(model, {"input": (1, 3, 8, 8)})
    assert set(found.groups) == {"stem/Conv", "down/MatMul"}
    assert set(found.layers) == {"stem/Conv", "down/MatMul", "up/MatMul", "head/Conv"}


def test_groups_that_a_layer_reads_side_by_side_are_one() -> None:
    """Two branches and the image meet in a Concat: the layer behind it reads two groups, and what cannot be pruned."""
    b = Builder()
    left = b.node("Relu", b.conv("input", 3, 8, at="left"))
    right = b.node("Relu", b.conv("input", 3, 4, at="right"))
    alone = b.node("Relu", b.conv("input", 3, 4, at="alone"))
    x = b.node("Concat", left, right, "input", axis=1)
    y = b.node("Add", b.conv(x, 15, 4, at="reader"), b.conv(alone, 4, 4, at="other"))
    found = find_subjects(normalise(b.model(b.conv(y, 4, 2, at="head"))), {"input": (1, 3, 8, 8)})
    assert {name: g.size for name, g in found.groups.items()} == {"left/Conv": 12, "alone/Conv": 4, "other/Conv": 4}
    assert found.layers["reader/Conv"].input_group == "left/Conv"
    assert found.layers["right/Conv"].output_group == "left/Conv"
    np.testing.assert_array_equal(found.layers["right/Conv"].output_classes, range(8, 12))
    np.testing.assert_array_equal(found.layers["reader/Conv"].input_classes, [*range(12), -1, -1, -1])


def test_a_depthwise_conv_over_several_groups_joins_them_unless_one_cannot_be_pruned() -> None:
    for parts, groups in ((["left", "right"], {"left/Conv": 6}), (["left", "input"], {})):
        b = Builder()
        read = [b.conv("input", 3, 3, at=p) if p != "input" else p for p in parts]
        x = b.conv(b.node("Concat", *read, axis=1), 6, 6, group=6, at="depthwise")
        found = find_subjects(normalise(b.model(b.conv(x, 6, 2, at="head"))), {"input": (1, 3, 8, 8)})
        assert {name: g.size for name, g in found.groups.items()} == groups
