"""ONNX protos: their size, the ONNX checker, and light copies without weights for shape inference."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import onnx

from passes.core.errors import ModelError
from passes.graph.sparse import densify

__all__ = [
    "EXTERNAL_DATA_THRESHOLD",
    "SMALL",
    "byte_size",
    "check",
    "copy_fields",
    "first_line",
    "large",
    "opset_of",
    "skeleton",
    "substitute",
    "tensor_bytes",
    "without_initializers",
    "without_weights",
]

# Constants up to this size may be shapes, axes or indices, whose values shape inference needs.
SMALL = 64
# protobuf refuses messages of 2 GiB; beyond this the weights go to a file beside the model.
EXTERNAL_DATA_THRESHOLD = 2**31 - 2**24


def opset_of(proto: onnx.ModelProto) -> int | None:
    """The version of ONNX's own operators that a model is written in; None where it names none."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)


def check(proto: onnx.ModelProto) -> None:
    """Run the ONNX checker and strict shape inference.

    Raises:
        ModelError: the model is not valid; with the first line of the checker's message.
    """
    try:
        onnx.checker.check_model(skeleton(densify(proto)), full_check=True)
        for tensor in proto.graph.initializer:
            # external tensors were checked before they were written, and others above 2 GiB cannot be serialised for it
            if not tensor.external_data and tensor_bytes(tensor) < EXTERNAL_DATA_THRESHOLD:
                onnx.checker.check_tensor(tensor)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise ModelError(f"the ONNX checker rejects the model: {first_line(e)}") from e


def byte_size(proto: onnx.ModelProto) -> int:
    """Bytes of a model's file, or of its files.

    For a model over 1 GB or with external weights, protobuf's overhead for each weight is left out: protobuf's own
    ByteSize serialises the model, and fails above 2 GiB.
    """
    weights = sum(map(tensor_bytes, proto.graph.initializer))
    small = weights < 10**9 and not any(tensor.external_data for tensor in proto.graph.initializer)
    return proto.ByteSize() if small else skeleton(proto).ByteSize() + weights


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values."""
    return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A small copy for checks and shape inference: large weights become inputs of the same type and shape.

    Operators whose outputs onnx 1.23 cannot infer are replaced by others of the same shape.
    """
    copy = without_weights(proto, large(proto))
    substitute(copy.graph)
    return copy


def large(proto: onnx.ModelProto) -> set[str]:
    """Names of the initializers of more than `SMALL` elements, which are weights and not shapes, axes or indices."""
    return {t.name for t in proto.graph.initializer if math.prod(t.dims) > SMALL}


def without_weights(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy in which the named initializers are inputs instead."""
    copy = without_initializers(proto)
    inputs = {v.name for v in copy.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in names:
            copy.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in inputs:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without its initializers."""
    copy = onnx.ModelProto()
    copy_fields(proto, copy, skip={"graph"})
    copy_fields(proto.graph, copy.graph, skip={"initializer"})
    return copy


def substitute(graph: onnx.GraphProto) -> None:
    """Replace operators that shape inference does not know by others with outputs of the same shape, in place."""
    for node in graph.node:
        if node.op_type == "GroupNormalization" and node.domain in ("", "ai.onnx"):
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, for one-sentence messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def copy_fields(source: Any, target: Any, skip: Iterable[str]) -> None:
    """Replace every field of the message `target`, except the skipped ones, by that of `source`."""
    skip = set(skip)
    for descriptor in target.DESCRIPTOR.fields:
        if descriptor.name not in skip:
            target.ClearField(descriptor.name)
    for descriptor, value in source.ListFields():
        if descriptor.name in skip:
            continue
        if descriptor.is_repeated:
            getattr(target, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)
