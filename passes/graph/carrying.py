"""Conversion of onnx-ir models to protos, and back without losing what the rewrite in between cannot hold.

A `Model` is made from a ModelProto, and becomes one again. On the way, graphsurgeon drops the documentation and
metadata of constants and of nodes inside an If or a Loop, and rewrites local functions; and a proto holds neither
onnx-ir's `meta`, nor the base folder of an external weight. `returned` takes these from the original onnx-ir model.
"""

from __future__ import annotations

import os

import onnx
import onnx_ir as ir

from passes.graph.external import refer

__all__ = ["returned", "serialised"]


def serialised(model: ir.Model) -> onnx.ModelProto:
    """The model as a new proto. External weights are not read: the proto refers to their files by absolute paths."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        given = model.graph.initializers[tensor.name].const_value
        if not isinstance(given, ir.ExternalTensor):
            continue
        if given.dtype.bitwidth >= 8:
            refer(tensor, os.path.abspath(given.path), given.offset or 0, given.nbytes)
        else:  # several values share a byte, so it cannot be mapped
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            tensor.raw_data = given.tobytes()
    return proto


def returned(proto: onnx.ModelProto, given: onnx.ModelProto, model: ir.Model) -> ir.Model:
    """A rewritten proto as an onnx-ir model, with the texts and metadata of `model` for all that is still there.

    Args:
        proto: what a rewrite has made of `given`, or `given` itself. Its functions are replaced, in place, by the
            originals of the same name in `given`.
        given: what `serialised` made of `model`.
        model: the original, which is not changed. Unchanged constants are shared with the result.
    """
    if proto is not given:
        left = {(f.domain, f.name, f.overload) for f in proto.functions}
        del proto.functions[:]
        proto.functions.extend(f for f in given.functions if (f.domain, f.name, f.overload) in left)
    result = ir.from_proto(proto)
    result.meta.update(model.meta)
    result.graph.meta.update(model.graph.meta)
    nodes = {_key(node): node for node in model.graph.all_nodes() if node.outputs}
    for node in result.graph.all_nodes():
        old = nodes.get(_key(node)) if node.outputs else None
        if old is not None:
            _carry(old, node)
    values = _values(model.graph)
    for name, value in _values(result.graph).items():
        if name in values:
            _carry(values[name], value)
    _share_constants(result, model)
    return result


def _key(node: ir.Node) -> tuple[str, str, str | None]:
    """The operator and first output of a node, by which it is recognised after the rewrite."""
    return node.domain, node.op_type, node.outputs[0].name


def _carry(old: ir.Node | ir.Value, new: ir.Node | ir.Value) -> None:
    new.doc_string = new.doc_string or old.doc_string
    new.metadata_props.update({k: v for k, v in old.metadata_props.items() if k not in new.metadata_props})
    new.meta.update(old.meta)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values of the main graph by name."""
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return {v.name: v for v in values if v.name}


def _share_constants(result: ir.Model, model: ir.Model) -> None:
    """Use the original's tensors where values have not changed, and its file references for external weights."""
    in_files = {
        (os.path.abspath(t.path), t.offset or 0): t
        for v in model.graph.initializers.values()
        if isinstance(t := v.const_value, ir.ExternalTensor)
    }
    for name, value in result.graph.initializers.items():
        new = value.const_value
        if isinstance(new, ir.ExternalTensor):
            place = in_files[(new.path, new.offset or 0)]
            value.const_value = ir.ExternalTensor(
                place.location,
                place.offset,
                place.length,
                place.dtype,
                shape=place.shape,
                name=name,
                doc_string=place.doc_string,
                metadata_props=dict(place.metadata_props),
                base_dir=place.base_dir,
            )
            continue
        before = model.graph.initializers.get(name)
        old = None if before is None else before.const_value
        if new is None or old is None or (new.dtype, new.shape) != (old.dtype, old.shape):
            continue
        if new.dtype != ir.DataType.STRING and new.tobytes() == old.tobytes():
            value.const_value = old
