"""Arithmetic on numbers of channels, such as TorchScript's exporter writes for `c // 2` or `x.chunk(2, 1)`.

The results are computed while tracing, before any channel is removed. If channels are removed later, a node that reads
such a result is given it as a constant. A graph that was exported with computed bounds is thus pruned like one with
constant bounds.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.channels.tracing import Size, Tracer
from passes.graph.evaluation import evaluate
from passes.graph.model import constant_value

__all__ = ["cast_size", "compute_sizes", "size_entries"]

_NO_IDS = np.zeros(0, int)


def size_entries(tensor: gs.Tensor, tracer: Tracer) -> np.ndarray:
    """The entries of a tensor as an object array of its shape: a `Size`, or None for an entry that is not known."""
    value = constant_value(tensor)
    if value is None:
        shape = tracer.shape(tensor)
        found = tracer.sizes.get(tensor.name, (None,) * math.prod(shape))
    else:
        shape, found = value.shape, tuple(Size(_NO_IDS, v, False) for v in np.ravel(value))
    entries = np.empty(len(found), object)
    entries[:] = found
    return entries.reshape(shape)


def cast_size(size: Size | None, node: gs.Node) -> Size | None:
    """What a Cast node makes of an entry."""
    to = node.attrs["to"]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else np.dtype(to)
    return None if size is None else replace(size, value=dtype.type(size.value))


def compute_sizes(node: gs.Node, tracer: Tracer) -> bool:
    """Evaluate an elementwise operator if it only reads constants and numbers of channels; returns whether it did.

    If it reads a number of channels together with other values, such as activations, the number keeps its value when
    channels are removed.

    Raises:
        Closed: a number of channels is read together with other values, and is itself not known.
    """
    if not any(len(tracer.counted(t)) for t in node.inputs):
        return False
    given = [t for t in node.inputs if not t.is_empty()]
    if all(t.name in tracer.sizes or constant_value(t) is not None for t in given):
        operands = np.broadcast_arrays(*(size_entries(t, tracer) for t in given))
        entries = list(zip(*(o.ravel() for o in operands), strict=True))
        known = [None not in entry for entry in entries]
        counts = [any(s is not None and len(s.ids) for s in entry) for entry in entries]
        if all(k or not c for k, c in zip(known, counts, strict=True)):
            feeds = [None if t.is_empty() else _values(size_entries(t, tracer)) for t in node.inputs]
            result = np.ravel(evaluate(node, feeds, tracer.opset)[0])
            tracer.sizes[node.outputs[0].name] = tuple(
                Size(np.unique(np.concatenate([s.ids for s in entry])), value, False) if k else None
                for entry, value, k in zip(entries, result, known, strict=True)
            )
            return True
    for index in range(len(node.inputs)):
        tracer.freeze(node, index)
    return False


def _values(entries: np.ndarray) -> np.ndarray:
    """The values of entries, with 1 for those that are not known, whose results are not used."""
    given = [s.value for s in entries.ravel() if s is not None]
    dtype = np.asarray(given[0]).dtype if given else np.dtype(np.int64)
    return np.array([1 if s is None else s.value for s in entries.ravel()], dtype).reshape(entries.shape)
