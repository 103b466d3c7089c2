"""Reads and checks ONNX files, and writes them whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from passes.core.arguments import check_type
from passes.core.atomic import write_atomically
from passes.core.errors import ModelError, OutputError
from passes.graph.external import brought_in, location, moved_out, relative
from passes.graph.protos import EXTERNAL_DATA_THRESHOLD, byte_size, check, first_line, large, tensor_bytes
from passes.graph.sorting import in_topological_order

__all__ = ["load", "save", "weights_beside", "weights_of"]


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file, with its external data, and check it. Nodes that are out of order are sorted.

    Raises:
        ModelError: the file is missing, unreadable, not ONNX, or not valid ONNX.
    """
    check_type(path, (str, os.PathLike), "the path", "give the path of an ONNX file", ModelError)
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no model file at '{path}': give the path of an ONNX file")
    try:
        proto = onnx.load(path, format="protobuf")  # whatever the extension is
    except (DecodeError, ValueError) as e:
        raise ModelError(f"'{path}' is not an ONNX file, or is damaged: export the model again") from e
    except (OSError, onnx.checker.ValidationError) as e:
        raise ModelError(f"'{path}' cannot be read ({first_line(e)}): check the file and its weights beside it") from e
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX file, or holds an empty graph: export the model again")
    try:
        proto = in_topological_order(proto)
        check(proto)
        _check_sizes(proto)
    except ModelError as e:
        raise ModelError(f"'{path}': {e}") from e
    except ValueError as e:
        raise ModelError(f"'{path}' is damaged: export the model again") from e
    if not _is_text(proto):
        raise ModelError(f"'{path}' is damaged, as it has names that are no UTF-8: export the model again")
    return proto


def _check_sizes(proto: onnx.ModelProto) -> None:
    """Reject weights with more bytes than their shape needs (external data without a length); the checker does not."""
    for tensor in proto.graph.initializer:
        held, due = len(tensor.raw_data), tensor_bytes(tensor)
        if held > due:
            raise ModelError(
                f"the initializer '{tensor.name}' has {held} bytes, but its shape needs {due}: export the model again"
            )


def weights_beside(path: str | os.PathLike[str]) -> set[Path]:
    """Paths of the external data files that a model refers to; none if `path` is not a model."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return set()
    names = {location(m) for m in _messages(proto) if isinstance(m, onnx.TensorProto)}
    # other names are refused when the model is loaded
    return {Path(path).parent / name for name in names if isinstance(name, str) and "\0" not in name}


def _messages(message: Message) -> Iterator[Message]:
    """A message and all those within it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _is_text(message: Message) -> bool:
    """Whether all strings within a message are UTF-8; protobuf does not check that, and gives bytes for others."""
    for inner in _messages(message):
        for field, value in inner.ListFields():
            values = value if field.is_repeated else [value]
            if field.type == field.TYPE_STRING and any(isinstance(v, bytes) for v in values):
                return False
    return True


def save(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write an ONNX file atomically; above protobuf's 2 GiB, the large weights go to `<name>.data` beside it.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
        ModelError: it is no model.
    """
    check_type(proto, onnx.ModelProto, "the model", "give an onnx.ModelProto", ModelError)
    path = Path(path)
    if byte_size(proto) < EXTERNAL_DATA_THRESHOLD:
        write_atomically(path, brought_in(proto).SerializeToString(deterministic=True))
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            light, _ = relative(moved_out(proto, large(proto), weights_of(temporary)))
            temporary.write_bytes(light.SerializeToString(deterministic=True))
            os.replace(weights_of(temporary), weights_of(path))
            os.replace(temporary, path)
    except OSError as e:
        raise OutputError(f"cannot write '{path}' ({e.strerror or e}): make room or give another place") from e


def weights_of(path: Path) -> Path:
    """The file beside `path` into which `save` puts the large weights of a model above 2 GiB."""
    return path.parent / f"{path.name}.data"
