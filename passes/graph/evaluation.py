"""The value of a single node for given inputs, by ONNX's reference implementation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

__all__ = ["evaluate"]


def evaluate(node: gs.Node, inputs: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """The outputs of one node, by ONNX's reference implementation, which raises its own errors.

    Args:
        node: a node of the default domain; the tensors that are its inputs are not read.
        inputs: values for its inputs, in their order; None for an omitted one.
        opset: version of the default operator set.
    """
    proto = OnnxExporter.export_node(node)
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    results = [f"y{i}" if t.name else "" for i, t in enumerate(node.outputs)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(results)
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.ValueInfoProto(name=n) for n in names if n],
        [onnx.ValueInfoProto(name=n) for n in results if n],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return list(ReferenceEvaluator(model).run(None, {n: x for n, x in zip(names, inputs, strict=True) if n}))
