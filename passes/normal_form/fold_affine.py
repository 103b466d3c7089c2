"""BatchNormalization, and constants that scale or shift each channel, folded into the Conv before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.graph.graph_pass import GraphPass
from passes.graph.model import Model
from passes.graph.naming import unused_name
from passes.normal_form.affine import affine, is_float, take_over

__all__ = ["FoldAffine"]


@dataclass(frozen=True)
class FoldAffine(GraphPass):
    """Fold nodes that scale or shift each channel by a constant into the Conv before them, if nothing else reads it.

    The rule is s (W * x + b) + t = (s W) * x + (s b + t). It is applied to one node after another behind the Conv,
    across Transposes too, and computed in float64 and rounded once, to the weight's own type.

    onnxscript's rule is not used: it renames nodes, which plans and reports refer to by name, and computes in the
    model's own precision.

    Constants must be initializers (onnx-ir's LiftConstantsToInitializersPass makes them so); Convs, scales and shifts
    with others are left as they are.
    """

    def rewrite(self, model: Model) -> int:
        """Fold in place; returns how many nodes were folded."""
        outputs = {t.name for t in model.graph.outputs}
        folded = 0
        for conv in [n for n in model.graph.nodes if n.op == "Conv"]:
            if conv.inputs[-1].is_empty():  # a bias left out
                conv.inputs.pop()
            if not all(isinstance(t, gs.Constant) for t in conv.inputs[1:]) or not is_float(conv.inputs[1]):
                continue
            last, axis = conv, 1  # the Conv or the last Transpose behind it, and its axis of channels
            while last.outputs[0].name not in outputs and len(last.outputs[0].outputs) == 1:
                reader = last.outputs[0].outputs[0]
                if reader.op == "Transpose":
                    rank = len(conv.inputs[1].shape)
                    last, axis = reader, list(reader.attrs.get("perm", range(rank)[::-1])).index(axis)
                    continue
                found = affine(reader, conv.inputs[1].shape[0], len(conv.inputs[1].shape), axis)
                if found is None:
                    break
                _absorb(model.graph, conv, *found)
                take_over(last, reader)
                folded += 1
        model.graph.cleanup()
        return folded


def _absorb(graph: gs.Graph, conv: gs.Node, s: np.ndarray, t: np.ndarray) -> None:
    weight = conv.inputs[1]
    values = np.asarray(weight.values)
    if (s != 1).any():
        scaled = s.reshape(-1, *[1] * (values.ndim - 1)) * values.astype(np.float64)
        conv.inputs[1] = _constant(graph, conv, weight, scaled.astype(values.dtype))
    if len(conv.inputs) > 2:
        bias = (s * np.asarray(conv.inputs[2].values, np.float64) + t).astype(values.dtype)
        conv.inputs[2] = _constant(graph, conv, conv.inputs[2], bias)
    elif t.any():
        conv.inputs.append(gs.Constant(unused_name(graph, f"{conv.name}:bias"), t.astype(values.dtype)))


def _constant(graph: gs.Graph, node: gs.Node, old: gs.Constant, values: np.ndarray) -> gs.Constant:
    """A constant for `node` in place of `old`: under its name if only this node reads it, else under a new one."""
    return gs.Constant(old.name if len(old.outputs) == 1 else unused_name(graph, f"{old.name}:{node.name}"), values)
