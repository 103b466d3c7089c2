"""Brings the graphs of different exporters into one normal form, exact to float rounding, in these steps:

1. Calls of model-local functions are inlined (onnx).
2. Weights in Constant nodes become initializers (onnx-ir), sparse ones dense.
3. Ifs that static shapes decide become the branch that is taken.
4. Nodes that read only constants are replaced by their results (onnxscript, then `FoldRemainingConstants`).
5. Nodes that nothing reads (onnx-ir) and Identity nodes are removed.
6. Every node has a unique name.
7. Initializers that are outputs, or read inside an If or a Loop, stay as they are: nodes outside get copies of them.
8. BatchNormalization, and constants that scale or shift each channel, are folded into the Conv before them; of Convs
   that share a weight, into all of them or none.
9. MatMul by a constant, and the Add of a constant behind it, become a Gemm; where an image has several vectors
   (tokens), between a Flatten and a Reshape.

Each step is a pass in a file of its own; the rules are in their docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_ir.passes import PassResult, PostconditionError, common

from passes.core.errors import ModelError
from passes.graph.carrying import returned, serialised
from passes.graph.external import lazy, plain_weights
from passes.graph.graph_pass import GraphSequence
from passes.graph.model import Model
from passes.graph.protos import without_weights
from passes.graph.sparse import densify
from passes.normal_form.decide_ifs import DecideIfs
from passes.normal_form.fold_affine import FoldAffine
from passes.normal_form.fold_constants import FoldConstants
from passes.normal_form.fold_remaining_constants import FoldRemainingConstants
from passes.normal_form.inline_functions import inline_functions
from passes.normal_form.matmul_to_gemm import MatMulToGemm
from passes.normal_form.name_nodes import NameNodes
from passes.normal_form.own_constants import OwnConstants
from passes.normal_form.remove_identities import RemoveIdentities
from passes.normal_form.separate_constants import SeparateConstants

__all__ = ["REWRITES", "Normalise", "normalise"]

# Steps that run on a model without the large weights of its layers, which none of them reads.
CONSTANTS = (
    OwnConstants(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    DecideIfs(),
    FoldConstants(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.RemoveUnusedNodesPass(),
)
REWRITES = GraphSequence(
    (
        RemoveIdentities(),
        NameNodes(),
        FoldRemainingConstants(),
        SeparateConstants(),
        FoldAffine(),
        MatMulToGemm(),
    )
)


def normalise(proto: onnx.ModelProto) -> Model:
    """The model in normal form, as a graph to rewrite; the proto given is not changed."""
    return _normalised(proto)[0]


@dataclass(frozen=True)
class Normalise(ir.passes.FunctionalPass):
    """Bring a model into the normal form: all steps that this module lists, in their order.

    Ensures:
        Each node of the main graph has a name of its own. The ONNX checker accepts the model.
    """

    def call(self, model: ir.Model) -> PassResult:
        """The model in normal form, a new object, and whether any step has changed anything.

        Raises:
            PostconditionError: the ONNX checker rejects the result.
        """
        given = serialised(model)
        normal, modified = _normalised(given)
        if not modified:
            return PassResult(returned(given, given, model), modified=False)
        try:
            return PassResult(returned(normal.finished(), given, model), modified=True)
        except ModelError as e:
            raise PostconditionError(f"Normalise: {e}") from e

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where two nodes share a name or one has none."""
        NameNodes().ensures(model)


def _normalised(proto: onnx.ModelProto) -> tuple[Model, bool]:
    """The normal form, and whether any step has changed anything."""
    dense = densify(proto)
    proto = inline_functions(dense)
    weights = {t.name: t for t in plain_weights(proto)}
    light = without_weights(proto, weights)
    forgotten = _forget_defaults(light.graph) if proto.ir_version < 4 else 0
    module = ir.from_proto(light)
    if "ai.onnx" in module.opset_imports:  # the same domain as "", spelt out
        module.opset_imports.setdefault("", module.opset_imports.pop("ai.onnx"))
    modified = proto is not dense
    for step in CONSTANTS:
        modified |= step(module).modified
    model = Model(ir.to_proto(module), proto)
    _put_back(model.graph, weights)
    modified |= bool(REWRITES.rewrite(model) + forgotten)
    model.tidy()
    return model, modified


def _forget_defaults(graph: onnx.GraphProto) -> int:
    """Remove the initializers from a graph's inputs; returns how many.

    Below IR version 4 they must be listed there, although they are constants.
    """
    constants = {t.name for t in graph.initializer}
    kept = [v for v in graph.input if v.name not in constants]
    forgotten = len(graph.input) - len(kept)
    del graph.input[:]
    graph.input.extend(kept)
    return forgotten


def _put_back(graph: gs.Graph, weights: dict[str, onnx.TensorProto]) -> None:
    for tensor in [t for t in graph.inputs if t.name in weights]:
        constant = gs.Constant(tensor.name, lazy(weights[tensor.name]))
        for node in list(tensor.outputs):
            node.inputs = [constant if t is tensor else t for t in node.inputs]
    graph.inputs = [t for t in graph.inputs if t.name not in weights]
