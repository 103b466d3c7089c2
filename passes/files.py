"""Files: ONNX models read and checked, and all that is written, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from passes.errors import ModelError, OutputError
from passes.external import brought_in, moved_out, relative
from passes.protos import EXTERNAL_DATA_THRESHOLD, byte_size, check, first_line, large

__all__ = ["load", "replacing", "save", "write_atomically"]


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file, with its external data, and check it.

    Raises:
        ModelError: the file is missing, unreadable, not ONNX, or not valid ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no model file at '{path}': give the path of an ONNX file")
    try:
        proto = onnx.load(path, format="protobuf")  # whatever the name says
    except (DecodeError, ValueError) as e:
        raise ModelError(f"'{path}' is not an ONNX file, or is damaged: export the model again") from e
    except (OSError, onnx.checker.ValidationError) as e:
        raise ModelError(f"'{path}' cannot be read ({first_line(e)}): check the file and its weights beside it") from e
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX file, or holds an empty graph: export the model again")
    try:
        check(proto)
    except ModelError as e:
        raise ModelError(f"'{path}': {e}") from e
    except ValueError as e:
        raise ModelError(f"'{path}' is damaged: export the model again") from e
    if not _is_text(proto):
        raise ModelError(f"'{path}' is damaged, as it has names that are no UTF-8: export the model again")
    return proto


def _is_text(message: Message) -> bool:
    """Whether all strings within a message are UTF-8: protobuf does not look, and gives bytes for the others."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.type == field.TYPE_STRING and any(isinstance(v, bytes) for v in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


def save(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write an ONNX file atomically; weights beyond protobuf's 2 GiB go to `<name>.data` beside it.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    if byte_size(proto) < EXTERNAL_DATA_THRESHOLD:
        write_atomically(path, brought_in(proto).SerializeToString(deterministic=True))
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            data = Path(folder) / f"{path.name}.data"
            light, _ = relative(moved_out(proto, large(proto), data))
            (Path(folder) / path.name).write_bytes(light.SerializeToString(deterministic=True))
            os.replace(data, path.parent / data.name)
            os.replace(Path(folder) / path.name, path)
    except OSError as e:
        raise OutputError(f"cannot write '{path}' ({e.strerror or e}): make room or give another place") from e


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all; raises OutputError, as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside a place, that is moved there when the context ends, so that no reader ever sees half of it.

    Raises:
        OutputError: the folder is missing, the place cannot be written, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if path.exists() and not path.is_file():  # a device or a pipe, which a file must not replace
            raise OSError(22, "it is not a regular file")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as e:
        raise OutputError(f"cannot write '{path}' ({e.strerror or e}): make room or give another place") from e
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
