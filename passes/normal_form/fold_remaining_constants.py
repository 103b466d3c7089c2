"""Constant folding of nodes that onnxscript does not fold: those with several outputs or with large results.

Weight standardisation is the common case: a network computes each Conv's weight from a parameter, through a
BatchNormalization in training mode or a ReduceMean, so that none of its Convs reads a constant.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.graph.evaluation import evaluate
from passes.graph.graph_pass import GraphPass
from passes.graph.model import Model
from passes.graph.subgraph import redirect

__all__ = ["FoldRemainingConstants"]

# Operators whose results differ from run to run, though their inputs are constant.
RANDOM = {
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldRemainingConstants(GraphPass):
    """Replace the nodes that read nothing but initializers by their results.

    The results are those of ONNX's reference implementation, in the operators' own types: exact to rounding. Nodes
    with subgraphs, of other domains, or with random results are left, and so are those that compute a model output.

    Attributes:
        largest: a result with more elements is folded only if it is no larger than the constants it is computed from.
            Otherwise the file would grow by large tensors that an Expand or a Tile computes quickly.

    Requires:
        What every `GraphPass` does.

    Ensures:
        The model computes the same, but for rounding.
    """

    largest: int = 2**18

    def rewrite(self, model: Model) -> int:
        """Fold in place; returns how many nodes were folded."""
        outputs = {t.name for t in model.graph.outputs}
        folded = 0
        for node in model.graph.nodes:  # in topological order, so that chains fold in one walk
            if not _can_be_folded(node) or any(t.name in outputs for t in node.outputs):
                continue
            values = [None if t.is_empty() else np.asarray(t.values) for t in node.inputs]
            try:
                results = evaluate(node, values, _version(node, model.graph.opset))
            except Exception as e:  # the reference implementation raises whatever numpy does
                _log.debug("node '%s' is not folded: %s", node.name, e)
                continue
            read = sum(v.size for v in values if v is not None)
            if sum(np.size(r) for r in results) > max(self.largest, read):
                continue
            for tensor, result in zip([t for t in node.outputs if t.name], results, strict=True):
                redirect(tensor, gs.Constant(tensor.name, np.asarray(result)))
            node.inputs.clear()
            node.outputs.clear()
            folded += 1
        if folded:
            model.graph.cleanup()
        return folded


def _version(node: gs.Node, opset: int) -> int:
    """The opset to evaluate a node at: the model's, except for a BatchNormalization with given statistics.

    Below opset 14 the reference implementation mixes the given statistics with those of the input. A node of an older
    opset with more than one output is in training mode; it lacks the attribute by which opset 14 says so, so its
    evaluation fails and the node stays.
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
