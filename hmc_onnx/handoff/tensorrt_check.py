"""What keeps TensorRT from building a graph, and what it changes in it.

The lists are those of the ONNX parser of TensorRT 10.15 (onnx-tensorrt, docs/operators.md) and of NVIDIA's page on
opsets for TensorRT 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from passes.core.errors import ModelError
from passes.graph.external import values_of
from passes.graph.protos import opset_of
from passes.graph.sparse import inner_graphs

__all__ = ["Findings", "check", "check_buildable"]

OLDEST_OPSET, NEWEST_OPSET = 9, 24  # that both versions read; 11 reads 25, too
UNSUPPORTED = {
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear",
    "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
    "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv",
    "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
    "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence",
    "StringNormalizer", "TfIdfVectorizer", "Unique",
}  # fmt: skip
# What to do about quantisation that TensorRT does not take.
ADVICE = "compress with `provider='tensorrt'` and `precision='int8'`"
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_T = onnx.TensorProto
# Element types that tensors may have; DOUBLE is computed in float32, and UINT8 is for inputs and outputs alone.
QUANTISED = {_T.INT8, _T.FLOAT8E4M3FN, _T.INT4}
TYPES = QUANTISED | {_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE, _T.INT32, _T.INT64, _T.BOOL, _T.UINT8}


@dataclass(frozen=True)
class Findings:
    """What was found, a sentence each, without a full stop.

    Attributes:
        reasons: why TensorRT cannot build the graph,
        remarks: and what else is to be known.
    """

    reasons: list[str]
    remarks: list[str]


def check_buildable(proto: onnx.ModelProto) -> list[str]:
    """Remarks on what TensorRT changes in a model, a sentence each; raises ModelError where it cannot build it."""
    found = check(proto)
    if found.reasons:
        raise ModelError(f"TensorRT cannot build the model: {'; '.join(found.reasons)}")
    return [f"{remark}." for remark in found.remarks]


def check(proto: onnx.ModelProto) -> Findings:
    """Look for what TensorRT 10 and 11 do not take."""
    reasons: list[str] = []
    nodes = list(_nodes(proto.graph))
    reasons += _found(nodes, lambda n: n.domain not in ("", "ai.onnx"), "is an operator that only a plug-in could run")
    reasons += _found(
        nodes,
        lambda n: n.domain in ("", "ai.onnx") and n.op_type in UNSUPPORTED,
        "is an operator that it does not know",
    )
    zeros = _zero_points(proto)
    unsigned = {name for name, tensor in zeros.items() if tensor.data_type not in QUANTISED}
    shifted = {name for name, tensor in zeros.items() if name not in unsigned and np.any(values_of(tensor))}
    reasons += _found(
        nodes,
        lambda n: n.op_type in QUANTISERS and (_zero_point(n) in unsigned or _untyped(n)),
        f"has quantised values that are no int8, such as uint8 activations ({ADVICE})",
    )
    reasons += _found(
        nodes,
        lambda n: n.op_type in QUANTISERS and _zero_point(n) in shifted,
        f"has a zero point that is not 0, and only symmetric quantisation is known ({ADVICE})",
    )
    ends = [*proto.graph.input, *proto.graph.output]
    used = {v.name: v.type.tensor_type.elem_type for v in ends} | {t.name: t.data_type for t in proto.graph.initializer}
    for name, kind in used.items():
        if kind not in TYPES and name not in unsigned:
            reasons.append(f"'{name}' is of type {_T.DataType.Name(kind).lower()}")
            break
    remarks = []
    doubles = [name for name, kind in used.items() if kind == _T.DOUBLE]
    if doubles:
        remarks.append(f"What is float64, such as '{doubles[0]}', is computed in float32")
    opset = opset_of(proto) or OLDEST_OPSET
    if opset < OLDEST_OPSET:
        reasons.append(f"opset {opset} is older than {OLDEST_OPSET}, the oldest that is read")
    if opset > NEWEST_OPSET:
        remarks.append(f"Opset {opset} is newer than {NEWEST_OPSET}, the newest that TensorRT 10 reads")
    return Findings(reasons, remarks)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                yield from _nodes(inner)


def _found(nodes: Sequence[onnx.NodeProto], wrong: Callable[[onnx.NodeProto], bool], what: str) -> list[str]:
    """A sentence on the nodes that have something wrong, if there are any: how many, and the first."""
    found = [n for n in nodes if wrong(n)]
    if not found:
        return []
    others = f", like {len(found) - 1} more," if len(found) > 1 else ""
    return [f"the {found[0].op_type} node '{found[0].name}'{others} {what}"]


def _zero_point(node: onnx.NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def _zero_points(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors of zero points, by name, of those that are constants of the main graph."""
    names = {_zero_point(n) for n in _nodes(proto.graph) if n.op_type in QUANTISERS} - {""}
    constants = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.HasField("t"))
    return {name: constants[name] for name in names if name in constants}


def _untyped(node: onnx.NodeProto) -> bool:
    """Whether a QuantizeLinear says no type: then it makes uint8."""
    typed = any(a.name == "output_dtype" and a.i in QUANTISED for a in node.attribute)
    return node.op_type == "QuantizeLinear" and not _zero_point(node) and not typed
