"""Large weights that stay in a file, to which models refer, so that a copy of a model of gigabytes takes kilobytes.

The weights are ONNX external data with the file's absolute path as location. To read one, the file is memory-mapped,
and the system may drop the pages again; only values that a pass has computed are held in memory.
"""

from __future__ import annotations

import mmap
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from weakref import WeakSet

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
    "pages_let_go",
    "plain_weights",
    "refer",
    "relative",
    "values_of",
]

# Bytes above which a model is not held in memory, nor copied to workers.
LARGE = 5e8
# Bytes above which a tensor of a large model is moved to a file.
LARGE_TENSOR = 2**16
PAGE = 4096  # weights begin at multiples of it in their file, so that they can be mapped
# The files' mapped parts that are in use.
MAPPED: WeakSet[mmap.mmap] = WeakSet()
MAPPING = threading.Lock()  # a set may not grow while it is gone through
LAYERS = ("Conv", "ConvTranspose", "Gemm")


class Mapped(np.memmap):
    """The mapped values of an external tensor, with that `tensor`; None for views, and for results of arithmetic."""

    tensor: TensorProto | None = None


class Lazy(LazyValues):  # type: ignore[misc]
    """A tensor's values, read when first used. graphsurgeon's own class warns about bfloat16; this does not."""

    def __init__(self, tensor: TensorProto) -> None:
        with quiet():
            super().__init__(tensor)

    def load(self) -> np.ndarray:
        """The values, as a new array."""
        return np.array(numpy_helper.to_array(self.tensor))


class _LazyMap(Lazy):
    def load(self) -> Mapped:
        mapped = _map(self.tensor).view(Mapped)
        mapped.tensor = self.tensor
        return mapped


def values_of(tensor: TensorProto) -> np.ndarray:
    """A tensor's values; memory-mapped if it `is_external`."""
    return _map(tensor) if is_external(tensor) else numpy_helper.to_array(tensor)


def lazy(tensor: TensorProto) -> LazyValues:
    """A tensor's values for a graphsurgeon Constant, read when they are asked for."""
    return _LazyMap(tensor) if is_external(tensor) else Lazy(tensor)


def held(constant: gs.Constant) -> np.ndarray | LazyValues:
    """The array of a Constant, or its LazyValues if nothing has read it yet.

    graphsurgeon has no public way to ask for this: `Constant.values` reads the values.
    """
    return constant._values


def held_tensor(constant: gs.Constant) -> TensorProto | None:
    """The tensor from which a Constant's values are read, or will be; None for values that a pass has computed."""
    tensor = getattr(held(constant), "tensor", None)
    return tensor if isinstance(tensor, TensorProto) else None


def location(tensor: TensorProto) -> str | None:
    """The file that a tensor's values are in; None where they are in the tensor."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's values are in a file of this package, with an absolute path; exporters write relative ones."""
    place = location(tensor)
    return place is not None and Path(place).is_absolute()


def has_external(proto: onnx.ModelProto) -> bool:
    """Whether any of a model's weights `is_external`."""
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
    mapped = np.memmap(place["location"], dtype, "r", int(place["offset"]), tuple(tensor.dims))
    if isinstance(mapped.base, mmap.mmap):
        with MAPPING:
            MAPPED.add(mapped.base)
    return mapped


def pages_let_go() -> None:
    """Take the pages of all mapped weights out of memory; those that are used again are read again.

    The system does so by itself when memory is short, but until then they count as memory that the process holds.
    """
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        with MAPPING:
            for mapped in MAPPED:
                mapped.madvise(mmap.MADV_DONTNEED)


def plain_weights(proto: onnx.ModelProto) -> list[TensorProto]:
    """Large initializers that only layers read, as weights: constant folding has no use for them, and copies cost."""
    others = {v.name for v in (*(proto.graph.input if proto.ir_version > 3 else ()), *proto.graph.output)}
    for node in proto.graph.node:
        others.update(node.input[:1] if node.op_type in LAYERS else node.input)
    if any(inner_graphs(a) for node in proto.graph.node for a in node.attribute):
        return []  # subgraphs may read initializers of the main graph
    names = large(proto) - others
    return [t for t in proto.graph.initializer if t.name in names]


def moved_out(proto: onnx.ModelProto, names: Collection[str], path: Path) -> onnx.ModelProto:
    """A copy of a model whose named initializers are written to the file `path`, one at a time.

    Raises:
        OSError: the file cannot be written.
    """
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
    """Unmap external weights that have been read; they are mapped again at the next use."""
    for constant in constants:
        values = held(constant)
        if isinstance(values, Mapped) and values.tensor is not None:
            constant.values = _LazyMap(values.tensor)


def folder_of(constants: Iterable[gs.Constant]) -> Path | None:
    """The folder of the first external weight among the constants; None if there is none."""
    for constant in constants:
        tensor = held_tensor(constant)
        if tensor is not None and is_external(tensor):
            return Path(location(tensor) or "").parent
    return None


def move_out(constants: Iterable[gs.Constant], folder: Path) -> None:
    """Write large values that passes have computed into files of a folder, from which they are mapped when used.

    Raises:
        OutputError: a file cannot be written.
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
    """Make a tensor external, in place: its values are `length` bytes of the file `location` from `offset` on."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def relative(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model with external weights by file name alone, and their folder; itself and None if it has none."""
    if not has_external(proto):
        return proto, None
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in filter(is_external, copy.graph.initializer):
        location = next(entry for entry in tensor.external_data if entry.key == "location")
        folder, location.value = Path(location.value).parent, Path(location.value).name
    return copy, folder


def brought_in(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its weights in memory; the model itself if they are there already."""
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
    """Yield a model over `LARGE` bytes with its weights in a temporary file, and a smaller one as it is.

    Models made from the yielded one refer to the same file, which is deleted when the context ends: `brought_in` reads
    their weights into memory.

    Raises:
        OutputError: the file cannot be written.
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
        del proto  # frees the weights if the caller holds no reference either
        yield light
