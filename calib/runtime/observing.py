"""Shapes that shape inference cannot find (behind custom operators, If and Loop), observed by running the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from calib.runtime.sessions import CPU, Runtime, Session
from passes.core.errors import ModelError
from passes.graph.model import Model
from passes.graph.shapes import Shapes
from passes.graph.subgraph import node_inputs, submodel

__all__ = ["observe"]


def observe(model: Model, inputs: Mapping[str, tuple[int, ...]], runtime: Runtime = CPU) -> Model:
    """Set `model.observed` to the shapes that inference cannot find, from one run on random inputs.

    Where onnxruntime cannot run the graph, these shapes stay unknown.

    Args:
        model: a model in normal form; it is changed in place and returned.
        inputs: shape of each input to run at; the observed shapes hold for these.
        runtime: as for `Session`.
    """
    model.observed = {}
    shapes = model.shapes_at(inputs)
    unknown = [t.name for n in model.graph.nodes for t in n.outputs if t.name and not _known(shapes, t.name)]
    if not unknown:
        return model
    try:
        seen = _run(model, inputs, unknown, runtime)
    except ModelError:
        return model
    while ends := [n for n in _where_inference_ends(model, shapes) if n in seen]:
        model.observed.update((n, onnx.helper.make_tensor_value_info(n, *seen[n])) for n in ends)
        shapes = model.shapes_at(inputs)
        for name in ends:  # a shape that inference still does not accept is not tried again
            seen.pop(name)
    return model


def _run(
    model: Model, inputs: Mapping[str, tuple[int, ...]], wanted: list[str], runtime: Runtime
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Element type (ONNX) and shape of each wanted value that is a tensor; sequences are left out."""
    rng = np.random.default_rng(0)
    dtypes = {t.name: onnx.helper.tensor_dtype_to_np_dtype(_elem_type(model, t.name)) for t in model.graph.inputs}
    feeds = {name: np.asarray(rng.normal(size=shape)).astype(dtypes[name]) for name, shape in inputs.items()}
    session = Session(submodel(model, model.graph.nodes, dtypes, wanted), runtime, timed=False)
    values = zip(wanted, session.run(feeds), strict=True)
    return {
        name: (onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in values
        if isinstance(v, np.ndarray)
    }


def _elem_type(model: Model, name: str) -> int:
    return next(int(v.type.tensor_type.elem_type) for v in model.header.graph.input if v.name == name)


def _known(shapes: Shapes, name: str) -> bool:
    return None not in shapes.get(name, (None,))


def _where_inference_ends(model: Model, shapes: Shapes) -> list[str]:
    """Outputs of unknown shape of those nodes whose inputs all have known shapes."""
    return [
        t.name
        for node in model.graph.nodes
        if all(_known(shapes, read.name) for read in node_inputs(node))
        for t in node.outputs
        if t.name and not _known(shapes, t.name)
    ]
