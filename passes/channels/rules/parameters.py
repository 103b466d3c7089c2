"""Parameters of nodes, such as axes and pads, in the form of every opset: attributes or constant inputs."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from passes.channels.registry import Closed
from passes.channels.tracing import Tracer
from passes.core.declined import Why
from passes.graph.model import constant_value
from passes.graph.naming import unused_name

__all__ = ["is_given", "parameter", "set_parameter", "weight"]


def is_given(node: gs.Node, index: int) -> bool:
    """Whether an optional input is there."""
    return len(node.inputs) > index and not node.inputs[index].is_empty()


def parameter(node: gs.Node, name: str, index: int | None, tracer: Tracer) -> np.ndarray | None:
    """A parameter that is an attribute in some opsets and a constant input in others; None if it is left out.

    It has at least one axis. One that is computed from numbers of channels keeps its value when channels are removed.

    Raises:
        Closed: the parameter is computed from anything else.
    """
    if name in node.attrs:
        return np.atleast_1d(node.attrs[name])
    if index is None or not is_given(node, index):
        return None
    value = tracer.value(node.inputs[index])
    if value is None:
        raise Closed(f"has computed {name}", Why.COMPUTED_WEIGHTS)
    tracer.freeze(node, index)
    return np.atleast_1d(value)


def set_parameter(graph: gs.Graph, node: gs.Node, name: str, index: int | None, value: np.ndarray) -> None:
    """Set a parameter in the form that it has; one that is left out becomes input `index`, or an attribute if None."""
    if name in node.attrs or index is None:
        node.attrs[name] = value.tolist()
        return
    while len(node.inputs) <= index:
        node.inputs.append(gs.Variable.empty())
    old = constant_value(node.inputs[index])
    scalar = old is not None and old.ndim == 0
    node.inputs[index] = gs.Constant(unused_name(graph, f"{node.name}:{name}"), value.reshape(()) if scalar else value)


def weight(node: gs.Node, index: int) -> gs.Constant:
    """The constant that a node reads as input `index`; raises Closed where it is computed."""
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        raise Closed(f"computes its parameters: '{tensor.name}'", Why.COMPUTED_WEIGHTS)
    return tensor
