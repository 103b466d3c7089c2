"""Nodes that are out of order, which onnxruntime takes, are sorted on loading; all else stays as it is."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from zoo import Builder, assert_same, images, resnet, run

from passes.core.errors import ModelError
from passes.graph.files import load
from passes.graph.sorting import in_topological_order


def test_a_file_whose_nodes_are_out_of_order_is_sorted(tmp_path: Path) -> None:
    proto = resnet((1, 1), (4, 8), size=8)
    expected = run(proto, images(2, 8))
    first = proto.graph.node[0]
    unsorted = onnx.ModelProto()
    unsorted.CopyFrom(proto)
    del unsorted.graph.node[0]
    unsorted.graph.node.append(first)
    onnx.save(unsorted, tmp_path / "unsorted.onnx")
    loaded = load(tmp_path / "unsorted.onnx")
    assert loaded == proto
    assert_same(run(loaded, images(2, 8)), expected)


def test_a_branch_that_reads_what_comes_later_is_sorted_too() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    flag = b.node("Greater", b.node("ReduceMean", x, keepdims=0), b.const(b.normal()))
    late = b.node("Relu", x)
    graphs = []
    for op in ("Neg", "Abs"):
        inner = Builder()
        y = inner.node("Identity", inner.node(op, late))
        inner.nodes.reverse()
        graphs.append(onnx.helper.make_graph(inner.nodes, op, [], [onnx.ValueInfoProto(name=y)]))
    y = b.node("If", flag, then_branch=graphs[0], else_branch=graphs[1])
    relu = b.nodes.pop(-2)
    b.nodes.append(relu)
    proto = b.model({y: ["N", 4, 8, 8]}, check=False)
    done = in_topological_order(proto)
    onnx.checker.check_model(done, full_check=True)
    assert [n.name for n in done.graph.node][-2:] == [relu.name, proto.graph.node[-2].name]


def test_a_sorted_model_is_the_model_itself() -> None:
    proto = resnet((1,), (4,), size=8)
    assert in_topological_order(proto) is proto


def test_a_cycle_is_refused() -> None:
    b = Builder()
    b.nodes.append(onnx.helper.make_node("Add", ["input", "b"], ["a"]))
    b.nodes.append(onnx.helper.make_node("Relu", ["a"], ["b"]))
    with pytest.raises(ModelError, match="the model's nodes form a cycle"):
        in_topological_order(b.model({"b": ["N", 3, 8, 8]}, check=False))
