"""Large weights that stay in a file, to which models refer: a model of gigabytes is handed on as one of kilobytes.

They are ONNX's external data, with the file's absolute path as their location. What reads a weight maps the file, and
the system may drop the pages that were read; only what a pass makes anew is held in memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from passes.core.errors import OutputError
from passes.graph.protos import byte_size, copy_fields, large, tensor_bytes, without_initializers
from passes.graph.quiet import quiet
from passes.graph.sparse import inner_graphs

__all__ = [
    "LARGE",
    "Lazy",
    "Mapped",
    "brought_in",
    "bytes_held",
    "content",
    "folder_of",
    "has_external",
    "held",
    "held_tensor",
    "is_external",
    "lazy",
    "let_go",
    "location",
    "move_out",
    "moved_out",
    "on_disk",
    "plain_weights",
    "refer",
    "relative",
    "values_of",
]

# Bytes above which a model is not held in memory, nor copied to workers.
LARGE = 5e8
# Bytes above which a tensor of a large model leaves it.
LARGE_TENSOR = 2**16
PAGE = 4096  # where weights begin in their file, so that they can be mapped
LAYERS = ("Conv", "ConvTranspose", "Gemm")


class Mapped(np.memmap):
    """The values of an external tensor. Views and results of it have no `tensor`."""

    tensor: TensorProto | None = None


class Lazy(LazyValues):  # type: ignore[misc]
    """A tensor's values, read when they are asked for; graphsurgeon's own print a warning where they are bfloat16."""

    def __init__(self, tensor: TensorProto) -> None:
        with quiet():
            super().__init__(tensor)

    def load(self) -> np.ndarray:
        """The values, as a copy."""
        return np.array(numpy_helper.to_array(self.tensor))


class _LazyMap(Lazy):
    def load(self) -> Mapped:
        mapped = _map(self.tensor).view(Mapped)
        mapped.tensor = self.tensor
        return mapped


def values_of(tensor: TensorProto) -> np.ndarray:
    """A tensor's values, mapped where they are in such a file."""
    return _map(tensor) if is_external(tensor) else numpy_helper.to_array(tensor)


def lazy(tensor: TensorProto) -> LazyValues:
    """A tensor's values for a graphsurgeon Constant, read when they are asked for."""
    return _LazyMap(tensor) if is_external(tensor) else Lazy(tensor)


def held(constant: gs.Constant) -> np.ndarray | LazyValues:
    """What a Constant holds, without reading what has not been read yet.

    graphsurgeon has no public way to ask this: `Constant.values` reads.
    """
    return constant._values


def held_tensor(constant: gs.Constant) -> TensorProto | None:
    """The tensor that a Constant's values are, or are still to be, read from; None where a pass has made them."""
    tensor = getattr(held(constant), "tensor", None)
    return tensor if isinstance(tensor, TensorProto) else None


def location(tensor: TensorProto) -> str | None:
    """The file that a tensor's values are in; None where they are in the tensor."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's values are in a file that `moved_out` wrote, and not whoever exported the model."""
    place = location(tensor)
    return place is not None and Path(place).is_absolute()


def has_external(proto: onnx.ModelProto) -> bool:
    """Whether any of a model's weights is in such a file."""
    return any(map(is_external, proto.graph.initializer))


def bytes_held(proto: onnx.ModelProto) -> int:
    """Bytes of the weights that are in memory."""
    return sum(tensor_bytes(t) for t in proto.graph.initializer if not is_external(t))


def content(tensor: TensorProto) -> bytes | memoryview:
    """The bytes of a tensor's values, little-endian, as in `raw_data`."""
    if is_external(tensor):
        return _map(tensor).reshape(-1).view(np.uint8).data
    return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()


def _map(tensor: TensorProto) -> np.memmap:
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(place["location"], dtype, "r", int(place["offset"]), tuple(tensor.dims))


def plain_weights(proto: onnx.ModelProto) -> list[TensorProto]:
    """Large initializers that are nothing but weights of layers: there is nothing to fold, and a copy would cost."""
    others = {v.name for v in (*(proto.graph.input if proto.ir_version > 3 else ()), *proto.graph.output)}
    for node in proto.graph.node:
        others.update(node.input[:1] if node.op_type in LAYERS else node.input)
    if any(inner_graphs(a) for node in proto.graph.node for a in node.attribute):
        return []  # graphs inside it may read what is around them
    names = large(proto) - others
    return [t for t in proto.graph.initializer if t.name in names]


def moved_out(proto: onnx.ModelProto, names: Collection[str], path: Path) -> onnx.ModelProto:
    """A copy whose named initializers are in a file, with no copy of them all in memory; raises OSError."""
    copy = without_initializers(proto)
    path = path.absolute()
    with path.open("wb") as file:
        for tensor in proto.graph.initializer:
            entry = copy.graph.initializer.add()
            if tensor.name not in names:
                entry.CopyFrom(tensor)
                continue
            copy_fields(tensor, entry, skip={"raw_data", "float_data", "int32_data", "double_data", "external_data"})
            file.write(b"\0" * (-file.tell() % PAGE))
            values = content(tensor)
            refer(entry, str(path), file.tell(), len(values))
            file.write(values)
    return copy


def let_go(constants: Iterable[gs.Constant]) -> None:
    """Unmap what was read of weights that are in a file: it is mapped again where it is asked for."""
    for constant in constants:
        values = held(constant)
        if isinstance(values, Mapped) and values.tensor is not None:
            constant.values = _LazyMap(values.tensor)


def folder_of(constants: Iterable[gs.Constant]) -> Path | None:
    """Where the weights of a graph are that are in a file; None where none are."""
    for constant in constants:
        tensor = held_tensor(constant)
        if tensor is not None and is_external(tensor):
            return Path(location(tensor) or "").parent
    return None


def move_out(constants: Iterable[gs.Constant], folder: Path) -> None:
    """Put what passes have made anew, and is large, into files of a folder.

    Raises:
        OutputError: there is no room for them.
    """
    for constant in constants:
        values = held(constant)
        there = isinstance(values, Mapped) and values.tensor is not None
        if there or not isinstance(values, np.ndarray) or values.nbytes <= LARGE_TENSOR:
            continue
        path = folder.absolute() / uuid.uuid4().hex
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=constant.name, data_type=kind, dims=values.shape)
        try:
            values.tofile(path)
        except OSError as e:
            raise _no_room(folder, e) from e
        refer(tensor, str(path), 0, values.nbytes)
        constant.values = _LazyMap(tensor)


def _no_room(folder: str | Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write the model's weights to '{folder}' ({error.strerror or error}): make room, or set TMPDIR to a "
        "folder on another disk"
    )


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor be that of a file's bytes, in place."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def relative(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model with its files named as beside it, and their folder; the model itself and None if it has none."""
    if not has_external(proto):
        return proto, None
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in filter(is_external, copy.graph.initializer):
        location = next(entry for entry in tensor.external_data if entry.key == "location")
        folder, location.value = Path(location.value).parent, Path(location.value).name
    return copy, folder


def brought_in(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its weights in memory; the model itself if they are."""
    if not has_external(proto):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in filter(is_external, copy.graph.initializer):
        values = bytes(content(tensor))
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = values
    return copy


@contextmanager
def on_disk(proto: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """A large model with its weights in a temporary file, which is gone afterwards; another as it is.

    What is made of it refers to the same file: see `brought_in`.

    Raises:
        OutputError: there is no room for the file.
    """
    weights = plain_weights(proto) if byte_size(proto) > LARGE else []
    names = {t.name for t in weights if not is_external(t) and tensor_bytes(t) > LARGE_TENSOR}
    del weights
    if not names:
        yield proto
        return
    with ExitStack() as stack:
        folder = gettempdir()
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix="hmc_onnx-"))
            light = moved_out(proto, names, Path(folder) / "weights")
        except OSError as e:
            raise _no_room(folder, e) from e
        del proto  # the caller may have let go of it
        yield light
