"""Concrete tensor shapes, by onnx.shape_inference on a weightless copy of the graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnxscript.optimizer import fold_constants

from passes.core.errors import ModelError
from passes.graph.model import Model
from passes.graph.protos import SMALL, first_line, substitute

__all__ = ["Shapes", "batch_one", "infer_shapes"]

# onnxscript's folder warns of each node that it leaves as it is, which is no news to a user.
logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)

Shape = tuple[int | None, ...]
Shapes = dict[str, Shape]


def batch_one(model: Model) -> dict[str, tuple[int, ...]]:
    """The graph's input shapes with an unknown first dimension set to 1.

    Raises:
        ModelError: a dimension other than the first is unknown.
    """
    shapes = {}
    for tensor in model.graph.inputs:
        dims = list(tensor.shape or [])
        if dims and not _is_size(dims[0]):
            dims[0] = 1
        if not all(map(_is_size, dims)):
            raise ModelError(
                f"input '{tensor.name}' has unknown dimensions {list(tensor.shape)}: "
                "state the input size (--size HEIGHT WIDTH), or export with a fixed one"
            )
        shapes[tensor.name] = tuple(dims)
    return shapes


def infer_shapes(model: Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Shape of every tensor by name; None for a dimension that stays unknown, no entry for unknown rank.

    Args:
        model: the graph.
        inputs: input shapes to infer with, by name; the graph's own where not given.
    """
    inputs = dict(inputs or {})
    graph = model.graph
    values = [gs.Variable(t.name, t.dtype, inputs.get(t.name, _open(t.shape))) for t in graph.inputs]
    large = {c.name: c for c in model.constants() if _size(c) > SMALL}
    values += [gs.Variable(c.name, c.dtype, c.shape) for c in large.values()]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    del proto.graph.input[:], proto.graph.output[:], proto.graph.node[:]
    for value in values:
        proto.graph.input.append(OnnxExporter.export_value_info_proto(value, do_type_check=False))
    for output in graph.outputs:
        proto.graph.output.append(onnx.ValueInfoProto(name=output.name))
    proto.graph.value_info.extend(model.observed.values())
    proto.graph.node.extend(OnnxExporter.export_node(node) for node in graph.nodes)
    substitute(proto.graph)
    small = (c for c in model.constants() if c.name not in large)
    proto.graph.initializer.extend(OnnxExporter.export_tensor_proto(c) for c in small)
    shapes: Shapes = {c.name: tuple(c.shape) for c in model.constants()}
    try:
        found = _inferred(proto)
        if any(t.name and None in found.get(t.name, (None,)) for n in graph.nodes for t in n.outputs):
            module = ir.from_proto(proto)  # shapes that are computed from shapes become constants
            fold_constants(module, onnx_shape_inference=True)
            known = _inferred(ir.to_proto(module))
            found |= {k: v for k, v in known.items() if None in found.get(k, (None,))}
    except (onnx.shape_inference.InferenceError, RuntimeError) as e:
        raise ModelError(f"shape inference fails on the model: {first_line(e)}") from e
    return shapes | found


def _open(shape: Sequence[object] | None) -> list[object] | None:
    """A shape with axes of -1 and 0 as unknown ones."""
    return None if shape is None else [d if isinstance(d, str) or _is_size(d) else None for d in shape]


def _is_size(dim: object) -> bool:
    """Whether an axis is given: exporters write unknown ones as names, as -1 and as 0."""
    return isinstance(dim, int) and dim > 0


def _inferred(proto: onnx.ModelProto) -> Shapes:
    shapes: Shapes = {}
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    for info in [*inferred.input, *inferred.value_info, *inferred.output]:
        if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return shapes


def _size(constant: gs.Constant) -> int:
    size = 1
    for d in constant.shape:
        size *= d
    return size
