"""A model over 2 GiB, more than protobuf holds: read, inspected, rewritten, written and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from zoo import Builder, images

from calib.runtime.sessions import Session
from hmc_onnx.analysis.inspection import inspect
from passes.decompose import DECOMPOSITIONS
from passes.graph.files import load, save
from passes.graph.layers import layer_of, replace_by_chain
from passes.graph.protos import byte_size
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise

WIDE = 13_600


def three_wide_layers() -> onnx.ModelProto:
    """2.2 GB in three Gemms, then two Convs."""
    b = Builder()
    x = b.gemm(b.node("Flatten", "input"), 192, WIDE, at="in")
    row = b.normal(2 * WIDE, scale=WIDE**-0.5)
    rows = np.lib.stride_tricks.sliding_window_view(row, WIDE)[:WIDE]  # each begins one later
    for i in range(3):
        x = b.node("Relu", b.node("Gemm", x, b.const(rows[:, :: 1 - 2 * (i % 2)], f"wide{i}"), transB=1, at=f"wide{i}"))
    x = b.node("Reshape", b.gemm(x, WIDE, 192, at="out"), b.const([-1, 3, 8, 8]))
    x = b.conv(b.node("Relu", b.conv(x, 3, 8, at="one")), 8, 4, at="two")
    value = helper.make_tensor_value_info
    inputs, outputs = value("input", 1, ["N", 3, 8, 8]), value(x, 1, ["N", 4, 8, 8])
    graph = helper.make_graph(b.nodes, "large", [inputs], [outputs], b.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.long
def test_a_model_over_two_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    save(three_wide_layers(), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert path.with_name("large.onnx.data").stat().st_size > 2**31

    proto = load(path)
    assert byte_size(proto) > 2**31
    assert inspect(proto)
    (before,) = Session(proto).run({"input": images(2, 8)})
    model = normalise(proto)
    node = next(n for n in model.graph.nodes if n.name == "two/Conv")
    layer = layer_of(node, infer_shapes(model, batch_one(model)))
    svd = DECOMPOSITIONS["svd"]
    rank = svd.max_rank(layer.geometry)
    factors = svd.factors(layer.geometry, layer.weight, np.eye(layer.geometry.features), rank)
    links = zip(svd.links(layer.geometry, rank), factors, strict=True)
    replace_by_chain(model.graph, node, list(links), layer.bias)
    model.forget_shapes()
    save(model.finished(), path)
    del proto, model

    onnx.checker.check_model(path, full_check=True)
    rewritten = load(path)
    assert [n.name for n in rewritten.graph.node][-2:] == ["two/Conv/0", "two/Conv/1"]
    (after,) = Session(rewritten).run({"input": images(2, 8)})
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
