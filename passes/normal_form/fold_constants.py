"""Constant folding of what onnxscript's folder leaves: operators with several outputs, and large results.

Weight standardisation is the common case: a network computes each Conv's weight from a parameter, through a
BatchNormalization in training mode or a ReduceMean, so that none of its Convs reads a constant.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_graphsurgeon as gs

from passes.graph.evaluation import evaluate
from passes.graph.model import Model
from passes.graph.subgraph import redirect

__all__ = ["fold_constants"]

# Operators whose results differ from run to run, though their inputs are constant.
RANDOM = {
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
# A result with more elements is folded only if it is no larger than the constants it is computed from: otherwise the
# file would grow by what an Expand or a Tile computes in no time.
LARGEST = 2**18

_log = logging.getLogger(__name__)


def fold_constants(model: Model) -> int:
    """Replace nodes that read nothing but initializers by their results; returns how many.

    Exact to rounding: the results are those of ONNX's reference implementation, in the operators' own types. Nodes
    with inner graphs, of other domains, with random results, or that give an output of the model stay.
    """
    outputs = {t.name for t in model.graph.outputs}
    folded = 0
    for node in model.graph.nodes:  # in topological order, so that chains fold in one walk
        if not _can_be_folded(node) or any(t.name in outputs for t in node.outputs):
            continue
        values = [None if t.is_empty() else np.asarray(t.values) for t in node.inputs]
        try:
            results = evaluate(node, values, _version(node, model.graph.opset))
        except Exception as e:  # the reference implementation raises whatever numpy does
            _log.debug("constants of node '%s' stay computed: %s", node.name, e)
            continue
        read = sum(v.size for v in values if v is not None)
        if sum(np.size(r) for r in results) > max(LARGEST, read):
            continue
        for tensor, result in zip([t for t in node.outputs if t.name], results, strict=True):
            redirect(tensor, gs.Constant(tensor.name, np.asarray(result)))
        node.inputs.clear()
        node.outputs.clear()
        folded += 1
    model.graph.cleanup()
    return folded


def _version(node: gs.Node, opset: int) -> int:
    """The opset to evaluate a node at: its own, but for a BatchNormalization with given statistics.

    Below opset 14 the reference implementation mixes those with the input's own. An older one with more outputs is in
    training mode; at 14 it lacks the attribute that says so, fails there for its outputs, and stays.
    """
    return max(opset, 14) if node.op == "BatchNormalization" else opset


def _can_be_folded(node: gs.Node) -> bool:
    if node.op in RANDOM or node.domain not in (None, "", "ai.onnx") or not node.inputs or not node.outputs:
        return False
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return False
    return all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs) and any(
        isinstance(t, gs.Constant) for t in node.inputs
    )
