"""Batches are as large as wanted, unless the graph itself is of one size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from zoo import Builder, images, resnet

from calib.data.calibration import CalibrationData
from calib.runtime.batching import at_once, batch_size, calibration_chunks, declared_batch, spread_feeds
from passes.normal_form.normalise import normalise


def net(batch: int | str | None, fixed: int | None = None, ir: int = 8) -> onnx.ModelProto:
    """A Conv and a Gemm; `fixed` is a batch size written into a Reshape. Below IR version 4 weights are inputs too."""
    b = Builder()
    x = b.node("GlobalAveragePool", b.conv("input", 3, 8))
    x = b.node("Flatten", x) if fixed is None else b.node("Reshape", x, b.const([fixed, 8]))
    proto = b.model({b.gemm(x, 8, 5): (batch, 5)}, (batch, 3, 8, 8))
    proto.ir_version = ir
    if ir < 4:
        first = proto.graph.input.pop()
        weights = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
        proto.graph.input.extend([*weights, first])
    return proto


@pytest.mark.parametrize("ir", [3, 8])
@pytest.mark.parametrize(("declared", "found"), [(4, 4), (1, 1), ("N", None), (None, None), (-1, None), (0, None)])
def test_the_declared_batch_is_that_of_what_is_fed(declared, found: int | None, ir: int) -> None:
    assert declared_batch(net(declared, ir=ir), {"input"}) == found
    assert declared_batch(normalise(net(declared, ir=ir)).header, {"input"}) == found


@pytest.mark.parametrize("ir", [3, 8])
@pytest.mark.parametrize(
    ("declared", "fixed", "size"), [("N", None, 16), (1, None, 16), (4, None, 16), (1, 1, 1), (4, 4, 4), ("N", 1, 1)]
)
def test_a_batch_is_as_wanted_where_the_graph_can_be_run_so(declared, fixed: int | None, size: int, ir: int) -> None:
    assert batch_size(normalise(net(declared, fixed, ir)), {"input": images(8, 8)}, 16) == size


def test_images_that_are_mixed_are_not_taken_for_a_batch() -> None:
    b = Builder()
    x = b.node("Flatten", b.node("Sub", "input", b.node("ReduceMean", "input", axes=[0], keepdims=1)))
    proto = b.model({b.gemm(x, 192, 5): (2, 5)}, (2, 3, 8, 8))
    assert batch_size(normalise(proto), {"input": images(8, 8)}, 16) == 2


@pytest.mark.parametrize(("fixed", "sizes"), [(None, [4, 3]), (2, [2, 2, 2])])
def test_what_is_left_over_is_a_smaller_chunk_or_none(fixed: int | None, sizes: list[int]) -> None:
    data = CalibrationData({"input": images(9, 8)}, None, "noise")
    chunks = calibration_chunks(normalise(net(fixed or "N", fixed)), data, 7, 4)
    assert [len(c["input"]) for c in chunks] == sizes
    np.testing.assert_array_equal(
        np.concatenate([c["input"] for c in chunks]), data.draw(7).feeds["input"][: sum(sizes)]
    )


def test_a_resnet_of_batch_one_is_measured_in_large_batches() -> None:
    proto = resnet((1, 1), (4, 8), size=8)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert batch_size(normalise(proto), {"input": images(4, 8)}, 128) == 128


def test_fewer_large_images_are_run_at_once() -> None:
    small, large = (np.zeros((2, 3, side, side), np.float32) for side in (32, 224))
    assert at_once({"input": small}, 128) == 128
    assert at_once({"input": large}, 128) == 16
    assert at_once({"input": np.zeros((1, 3, 2000, 2000), np.float32)}, 128) == 8


@pytest.mark.parametrize(
    ("images", "most", "found"),
    [
        (4, 9, [[0, 1, 2, 3]]),
        (8, 9, [[0, 1, 2, 3], [8, 9, 10, 11]]),
        (8, 3, [[0, 1, 2], [3], [8, 9, 10], [11]]),
        (99, 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17]]),
    ],
)
def test_feeds_are_taken_from_all_over(images: int, most: int, found: list[list[int]]) -> None:
    chunks = [{"x": np.arange(start, min(start + 4, 18))} for start in range(0, 18, 4)]
    assert [feeds["x"].tolist() for feeds in spread_feeds(chunks, images, most)] == found
