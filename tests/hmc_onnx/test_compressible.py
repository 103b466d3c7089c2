"""What is found to be compressed."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from zoo import Builder

from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.execution.executor import _BACKENDS
from hmc_onnx.records.settings import Settings
from hmc_onnx.run import Run
from hmc_onnx.search_space.candidates import whole_offers
from passes.channels import trace
from passes.decompose import chain_macs
from passes.graph.cost import costs, total
from passes.normal_form.normalise import normalise


def test_a_gate_of_dense_layers_in_nhwc_leaves_the_channels_open() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, at="stem"))
    gate = b.mean(b.node("Transpose", x, perm=[0, 2, 3, 1]), (1, 2), keepdims=1)
    gate = b.node("Relu", b.matmul(gate, 8, 4, at="down"))
    gate = b.node("Sigmoid", b.matmul(gate, 4, 8, at="up"))
    x = b.node("Mul", x, b.node("Transpose", gate, perm=[0, 3, 1, 2]))
    model = normalise(b.model(b.conv(x, 8, 4, at="head")))
    found = find_compressible(model, {"input": (1, 3, 8, 8)})
    assert set(found.groups) == {"stem/Conv", "down/MatMul"}
    assert set(found.layers) == {"stem/Conv", "down/MatMul", "up/MatMul", "head/Conv"}


def folded(crops: int = 4) -> onnx.ModelProto:
    """Crops of an image folded into the batch, and their scores averaged."""
    b = Builder()
    x = b.node("Reshape", "input", b.const([-1, 3, 8, 8]))
    x = b.node("Relu", b.conv(x, 3, 8, at="stem"))
    x = b.node("Relu", b.conv(x, 8, 16, at="second"))
    each = b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 16, 5)
    each = b.node("Reshape", each, b.const([-1, crops, 5]))
    return b.model({b.gemm(b.mean(each, (1,)), 5, 5, at="mix"): ["N", 5]}, ("N", crops, 3, 8, 8))


@pytest.mark.parametrize("images", [1, 3])
def test_a_layer_counts_for_as_many_maps_as_it_sees(images: int) -> None:
    model, inputs = normalise(folded()), {"input": (images, 4, 3, 8, 8)}
    found, cost = find_compressible(model, inputs), costs(model, inputs)
    assert {name: s.maps for name, s in found.layers.items()} == {
        "stem/Conv": 4,
        "second/Conv": 4,
        "fc/Gemm": 4,
        "mix/Gemm": 1,
    }
    for name, subject in found.layers.items():
        assert subject.macs() == cost[name].macs
        offered = whole_offers(subject, 1)
        assert all(o.macs == chain_macs(o.links, subject.size) * subject.maps for o in offered)


@pytest.mark.usefixtures("quick_decompositions")
def test_shares_are_right_of_crops_that_are_folded_into_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BACKENDS, "processes", contextlib.nullcontext)
    x = np.random.default_rng(0).normal(size=(32, 4, 3, 8, 8)).astype(np.float32)
    run = Run(folded(), {"input": x}, Settings(align=1, samples=32, kl_samples=16))
    before = total(normalise(run.served), run.inputs).macs
    for share in (0.9, 0.6):
        plan = run.plan(f"macs={share}")
        assert plan.macs == total(normalise(run.apply(plan)), run.inputs).macs
        assert share - 0.1 < plan.macs / before <= share


def test_groups_that_a_layer_reads_side_by_side_are_one() -> None:
    """Two branches and the image meet in a Concat: the layer behind it reads two groups, and what cannot be pruned."""
    b = Builder()
    left = b.node("Relu", b.conv("input", 3, 8, at="left"))
    right = b.node("Relu", b.conv("input", 3, 4, at="right"))
    alone = b.node("Relu", b.conv("input", 3, 4, at="alone"))
    x = b.node("Concat", left, right, "input", axis=1)
    y = b.node("Add", b.conv(x, 15, 4, at="reader"), b.conv(alone, 4, 4, at="other"))
    found = find_compressible(normalise(b.model(b.conv(y, 4, 2, at="head"))), {"input": (1, 3, 8, 8)})
    assert {name: g.size for name, g in found.groups.items()} == {"left/Conv": 12, "alone/Conv": 4, "other/Conv": 4}
    assert found.layers["reader/Conv"].input_group == "left/Conv"
    assert found.layers["right/Conv"].output_group == "left/Conv"
    np.testing.assert_array_equal(found.layers["right/Conv"].output_classes, range(8, 12))
    np.testing.assert_array_equal(found.layers["reader/Conv"].input_classes, [*range(12), -1, -1, -1])


def test_a_grouped_conv_loses_whole_groups_where_these_leave_a_choice() -> None:
    """Its four channels are tied to each other, but the Conv before it has four more, of which any can go."""
    b = Builder()
    x = b.conv("input", 3, 8, at="a")
    first, last = (b.node("Slice", x, *map(b.const, ([at], [at + 4], [1]))) for at in (0, 4))
    y = b.conv(first, 4, 4, group=2, at="grouped")
    y = b.node("Add", y, b.node("Gather", y, b.const([2, 3, 0, 1]), axis=1))
    model = normalise(b.model(b.conv(b.node("Concat", y, last, axis=1), 8, 2, at="head")))
    by_place = {g.name: g.size for g in trace(model).groups}
    assert by_place["grouped/Conv"] == 2
    found = find_compressible(model, {"input": (1, 3, 8, 8)})
    assert {name: g.size for name, g in found.groups.items()} == {"a/Conv": 5}
    assert found.layers["grouped/Conv"].input_group == found.layers["grouped/Conv"].output_group == "a/Conv"


def test_a_grouped_conv_of_which_no_whole_group_can_go_loses_as_many_outputs_of_each() -> None:
    b = Builder()
    y = b.conv(b.conv("input", 3, 4, at="a"), 4, 8, group=2, at="grouped")
    y = b.node("Add", y, b.node("Gather", y, b.const([4, 5, 6, 7, 0, 1, 2, 3]), axis=1))
    found = find_compressible(normalise(b.model(b.conv(y, 8, 2, at="head"))), {"input": (1, 3, 8, 8)})
    assert {name: g.size for name, g in found.groups.items()} == {"grouped/Conv": 4}
    assert str(found.declined["channels of a/Conv"]).startswith("the grouped Conv 'grouped/Conv' would lose inputs")
    assert found.layers["grouped/Conv"].input_group is None


def test_a_depthwise_conv_over_several_groups_joins_them_unless_one_cannot_be_pruned() -> None:
    for parts, groups in ((["left", "right"], {"left/Conv": 6}), (["left", "input"], {})):
        b = Builder()
        read = [b.conv("input", 3, 3, at=p) if p != "input" else p for p in parts]
        x = b.conv(b.node("Concat", *read, axis=1), 6, 6, group=6, at="depthwise")
        found = find_compressible(normalise(b.model(b.conv(x, 6, 2, at="head"))), {"input": (1, 3, 8, 8)})
        assert {name: g.size for name, g in found.groups.items()} == groups
