"""Concrete tensor shapes, by onnx.shape_inference on a copy of the graph without weights, cached for each graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from passes.core.errors import ModelError
from passes.graph.protos import SMALL, first_line, substitute

if TYPE_CHECKING:
    from passes.graph.model import Model

__all__ = ["Shape", "ShapeCache", "Shapes", "batch_one", "infer_shapes"]

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
                "state the input size (`size=(HEIGHT, WIDTH)`), or export with a fixed one"
            )
        shapes[tensor.name] = tuple(dims)
    return shapes


def infer_shapes(model: Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Shape of every tensor by name; None for a dimension that stays unknown, no entry for unknown rank.

    Nothing is cached here: `Model.shapes` and `Model.shapes_at` do that.

    Args:
        model: the graph.
        inputs: input shapes to infer with, by name; the graph's own where not given.

    Raises:
        ModelError: onnx's shape inference fails.
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
            from passes.graph.computed_shapes import with_computed_shapes  # noqa: PLC0415  workers do without onnx_ir

            known = _inferred(with_computed_shapes(proto))
            found |= {k: v for k, v in known.items() if None in found.get(k, (None,))}
    except (onnx.shape_inference.InferenceError, RuntimeError) as e:
        raise ModelError(f"shape inference fails on the model: {first_line(e)}") from e
    return shapes | found


class ShapeCache:
    """The shapes of one graph for each set of input shapes that was asked for; emptied when the graph changes."""

    def __init__(self) -> None:
        self._graph: Hashable = None
        self._found: dict[Hashable, Shapes] = {}

    def copy(self) -> ShapeCache:
        """A cache with the same shapes; what is added to one later is not in the other."""
        other = ShapeCache()
        other._graph, other._found = self._graph, dict(self._found)
        return other

    def at(self, model: Model, inputs: Mapping[str, tuple[int, ...]] | None) -> Shapes:
        """The shapes at `inputs` (None: those of `batch_one`); raises as `batch_one` and `infer_shapes` do."""
        inputs = batch_one(model) if inputs is None else inputs
        graph = _what_shapes_depend_on(model)
        if graph != self._graph:
            self._graph, self._found = graph, {}
        key = tuple(sorted((name, tuple(shape)) for name, shape in inputs.items()))
        if key not in self._found:
            self._found[key] = infer_shapes(model, inputs)
        return self._found[key]


def _what_shapes_depend_on(model: Model) -> Hashable:
    """Nodes, attributes, the values of small constants, the shapes and types of the large ones, inputs and outputs."""
    graph = model.graph
    return (
        tuple((t.name, str(t.dtype), _key(t.shape)) for t in graph.inputs),
        tuple(t.name for t in graph.outputs),
        tuple(_node_key(n) for n in graph.nodes),
        tuple((f.domain, f.name, _key(f)) for f in graph.functions),
        tuple((name, info.SerializeToString()) for name, info in model.observed.items()),
    )


def _node_key(node: gs.Node) -> Hashable:
    return (
        node.op,
        node.domain,
        tuple(_constant_key(t) if isinstance(t, gs.Constant) else t.name for t in node.inputs),
        tuple(t.name for t in node.outputs),
        tuple((name, _key(value)) for name, value in node.attrs.items()),
    )


def _constant_key(constant: gs.Constant) -> Hashable:
    values = constant.values.tobytes() if _size(constant) <= SMALL else None
    return constant.name, str(constant.dtype), tuple(constant.shape), values


def _key(value: object) -> Hashable:
    """An attribute, a shape or a function as a hashable value, to compare it by."""
    if isinstance(value, list | tuple):
        return tuple(_key(v) for v in value)
    if isinstance(value, gs.Graph):
        ends = tuple(t.name for t in value.inputs), tuple(t.name for t in value.outputs)
        return ends, tuple(_node_key(n) for n in value.nodes)
    if isinstance(value, gs.Constant):
        return _constant_key(value)
    return value if isinstance(value, int | float | str | bytes | None) else repr(value)


def _open(shape: Sequence[object] | None) -> list[object] | None:
    """A shape with None for dimensions of -1 and 0, by which exporters mean unknown ones."""
    return None if shape is None else [d if isinstance(d, str) or _is_size(d) else None for d in shape]


def _is_size(dim: object) -> bool:
    """Whether a dimension is known; exporters write unknown ones as names, as -1 and as 0."""
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
