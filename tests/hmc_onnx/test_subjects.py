"""What is found to be compressed."""

from __future__ import annotations

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
