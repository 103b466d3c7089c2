"""What each output of a model is, and by what it is compared with the same output of another model.

The kind is inferred from the graph: from the operator that computes the output, its axes, the other outputs, and, where
these leave it open, its name. A user can set it instead (the setting `judge`).

===============  ==================================================  ==============================================
kind             what it is                                          how two of them are compared
===============  ==================================================  ==============================================
scores           class scores (logits)                               KL divergence over the classes
probabilities    class probabilities (a Softmax at the end)          KL divergence over the classes
logit            one column of logits                                KL divergence of the two classes it decides on
probability      independent probabilities (a Sigmoid at the end)    KL divergence of each and its complement
embedding        L2-normalised, or features beside class scores      squared error as a share of the variance
regression       numbers                                             squared error as a share of the variance
map              several values at each place                        squared error as a share of the variance
boxes            a row of values for each of many boxes              the same, for each column separately
other            integers, sequences, constants, varying row counts  not compared
===============  ==================================================  ==============================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import onnx
import onnx_graphsurgeon as gs

from passes.core.errors import SettingsError

__all__ = ["CLASSES", "KINDS", "NO_RESULT", "ROWS_VARY", "Kind", "Output", "find_outputs", "parse_kinds"]

Kind = Literal["scores", "probabilities", "logit", "probability", "embedding", "regression", "map", "boxes", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Kinds that choose a class for each image, or at each place.
CLASSES: tuple[Kind, ...] = ("scores", "probabilities", "logit", "probability")

# Reasons why an output is not compared.
NO_RESULT = "a constant or an input, not a result"
ROWS_VARY = "rows whose number varies"

_WHAT: dict[Kind, str] = {
    "scores": "class scores",
    "probabilities": "class probabilities",
    "logit": "a logit, taken for a decision between two classes",
    "probability": "probabilities, each against its complement",
    "embedding": "an embedding",
    "regression": "a regression",
    "map": "a map",
    "boxes": "boxes",
    "other": "other",
}
_BY: dict[Kind, str] = {
    "scores": "KL divergence over the classes",
    "probabilities": "KL divergence over the classes",
    "logit": "KL divergence of the two classes",
    "probability": "KL divergence of each and its complement",
    "embedding": "squared error as a share of the variance",
    "regression": "squared error as a share of the variance",
    "map": "squared error as a share of the variance",
    "boxes": "squared error as a share of each column's variance",
    "other": "not compared",
}

# Operators that may stand between an output and the node that computes its values.
HANDED_ON = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
# Of these, those that leave the axes as they are.
SAME_AXES = ("Cast", "Identity")
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean")
ACTIVATIONS = ("BatchNormalization", "Clip", "HardSwish", "LeakyRelu", "PRelu", "Relu")
# Operators that give distances; and those behind which a single column is a regression, since a logit has no bounds.
DISTANCES = ("Abs", "ReduceL1", "ReduceL2", "Sqrt")
NUMBERS = (*DISTANCES, "Exp", "ReduceSum", "ReduceSumSquare", "Relu", "Softplus", "Tanh")
# Operators whose number of output rows depends on the values that they read.
VARYING = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
# Words in the names of outputs that hint at their kind.
EMBEDDING_NAMES = ("descriptor", "embed", "feat", "representation")
SCORE_NAMES = ("class", "cls", "label", "logit", "pred", "prob", "score")
BOX_NAMES = ("box", "detection")

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        name: name of the output.
        kind: one of the kinds in the module's table.
        tensor: name of the tensor that is compared: the output itself or, where the output is just the chosen class
            (an ArgMax or TopK), the scores that the class is chosen by.
        axis: axis of the classes in that tensor.
        images: axis of the images in that tensor.
        why: reason why the output is not compared; empty if it is.
    """

    name: str
    kind: Kind
    tensor: str
    axis: int = 1
    images: int = 0
    why: str = ""

    @property
    def classes(self) -> bool:
        """Whether the output chooses a class."""
        return self.kind in CLASSES

    @property
    def what(self) -> str:
        """What the output is, in words."""
        return self.why if self.kind == "other" and self.why else _WHAT[self.kind]

    @property
    def judged_by(self) -> str:
        """How the output is compared, in words."""
        return _BY[self.kind]


def parse_kinds(given: Sequence[str]) -> dict[str, Kind]:
    """Read texts of the form "NAME=kind", one for each output, into kinds by name.

    Raises:
        SettingsError: a text is not of that form, or the kind is unknown.
    """
    kinds: dict[str, Kind] = {}
    for text in given:
        name, _, word = text.rpartition("=")
        kind = next((k for k in KINDS if k == word.strip().lower()), None)
        if not name or kind is None:
            raise SettingsError(
                f"`judge` '{text}' is not understood: write NAME=kind, the kind one of {', '.join(KINDS)}"
            )
        kinds[name.strip()] = kind
    return kinds


def find_outputs(
    graph: gs.Graph, opset: int, header: onnx.GraphProto, kinds: Mapping[str, Kind] | None = None
) -> list[Output]:
    """Every output of a graph, in order, then what is compared in place of outputs whose number of rows varies.

    Args:
        graph: the graph.
        opset: version of the default operator set.
        header: a graph proto with the types of inputs and outputs, as the file declares them.
        kinds: kinds set by the user, by output name.

    Raises:
        SettingsError: `kinds` names an output that is not there, or a kind that the output cannot have.
    """
    kinds = kinds or {}
    for name in kinds:
        if all(value.name != name for value in header.output):
            known = ", ".join(value.name for value in header.output)
            raise SettingsError(f"`judge` {name}: the model has no output of that name, its outputs are {known}")
    batch = _batch(header, {t.name for t in graph.inputs})
    tensors = {t.name: t for t in graph.outputs}
    types = {value.name: value for value in header.output}
    found = [_output(tensors[name], value, batch, opset) for name, value in types.items() if name in tensors]
    found = _beside(found, {o.tensor: _tensor(tensors[o.name], o.tensor) for o in found})
    found = [_as_said(o, kinds[o.name], types[o.name], batch) if o.name in kinds else o for o in found]
    return [*found, *_before_selection(graph, [tensors[o.name] for o in found if o.why == ROWS_VARY])]


def _output(tensor: gs.Tensor, value: onnx.ValueInfoProto, batch: str | None, opset: int) -> Output:
    """The kind of one output, inferred without looking at the others."""
    dims, name = _dims(value), str(tensor.name)
    maker, between = _maker(tensor)

    def other(why: str) -> Output:
        return Output(name, "other", name, why=why)

    if not value.type.HasField("tensor_type"):
        return other("a sequence or a map, not a tensor")
    if maker is None or maker.op == "Constant":
        return other(NO_RESULT)
    if maker.op in ("ArgMax", "TopK") and maker.inputs[0].inputs:
        chosen = maker.inputs[0]
        before, _ = _maker(chosen)
        kind: Kind = "probabilities" if before is not None and before.op == "Softmax" else "scores"
        return Output(name, kind, str(chosen.name), maker.attrs.get("axis", 0 if maker.op == "ArgMax" else -1))
    if not _is_float(value):
        return other("integers or other values that are not floats")
    images = _images(dims, batch)
    if images is None and any(isinstance(d, str) or d is None for d in dims or ()) and _varies(tensor):
        return other(ROWS_VARY)
    images = images or 0
    if maker.op in ("Softmax", "LogSoftmax") and (len(dims or ()) <= 2 or all(n.op in SAME_AXES for n in between)):
        axis = maker.attrs.get("axis", -1 if opset >= 13 else 1)
        return Output(name, "scores" if maker.op == "LogSoftmax" else "probabilities", name, axis, images)
    if dims == ():
        return Output(name, "regression", name)
    column = _class_axis(dims, images)
    if column is None:
        return Output(name, "boxes" if _are_boxes(name, dims, images, maker) else "map", name, images=images)
    if maker.op == "Sigmoid":
        return Output(name, "probability", name, column, images)
    if dims is not None and (len(dims) == 1 or dims[column] == 1):
        return Output(name, "regression" if maker.op in NUMBERS else "logit", name, column, images)
    if maker.op in (*DISTANCES, "Tanh"):
        return Output(name, "regression", name, column, images)
    return Output(name, "embedding" if _is_embedding(maker) else "scores", name, column, images)


def _beside(found: list[Output], tensors: Mapping[str, gs.Tensor]) -> list[Output]:
    """The outputs, with apparent class scores corrected where the other outputs show that they are something else."""
    names = {o.name: o.name.lower() for o in found}
    named = [o for o in found if o.kind == "scores" and any(word in names[o.name] for word in SCORE_NAMES)]
    explicit = [o for o in found if o.kind in ("probabilities", "probability")]
    same = {t for o in explicit for t in _handed_on(tensors[o.tensor])}
    settled = []
    for o in found:
        if o.kind != "scores" or o.tensor != o.name:
            settled.append(o)
            continue
        others = [p for p in found if p.classes and p is not o]
        features = any(o.tensor in _read_by_the_last_layer(tensors[p.tensor]) for p in others)
        called = any(word in names[o.name] for word in EMBEDDING_NAMES)
        if o in named and not features:
            settled.append(o)
        elif features or called or named:
            settled.append(replace(o, kind="embedding"))
        elif explicit and o.tensor not in same:
            settled.append(replace(o, kind="regression"))
        else:
            settled.append(o)
    return settled


def _as_said(found: Output, kind: Kind, value: onnx.ValueInfoProto, batch: str | None) -> Output:
    """The output with the kind that the user has set; raises SettingsError where it cannot have that kind."""
    if kind == "other":
        return replace(found, kind=kind, tensor=found.name, why="other, as set by the user")
    if found.kind == "other" and not _is_float(value):
        raise SettingsError(
            f"`judge` {found.name}={kind}: the output is {found.what}, which cannot be compared as that"
        )
    dims = _dims(value) or ()
    if kind in CLASSES and not found.classes:
        own = _class_axis(dims, found.images)
        last = len(dims) - 1 if found.images != len(dims) - 1 else max(len(dims) - 2, 0)
        axis = own if own is not None else 1 if len(dims) > 3 else last
        return replace(found, kind=kind, axis=axis, images=_images(dims, batch) or 0, why="")
    return replace(found, kind=kind, tensor=found.tensor if kind in CLASSES else found.name, why="")


def _before_selection(graph: gs.Graph, varying: Sequence[gs.Tensor]) -> list[Output]:
    """The boxes and scores from which each NonMaxSuppression selects that leads to one of the `varying` outputs."""
    found = []
    behind = {id(n) for t in varying for n in _nodes_before(t)}
    for i, node in enumerate(n for n in graph.nodes if n.op == "NonMaxSuppression"):
        if id(node) not in behind:
            continue
        for what, kind, tensor in zip(("boxes", "scores"), ("boxes", "map"), node.inputs[:2], strict=True):
            if tensor.inputs and tensor.inputs[0].op != "Constant":
                found.append(Output(f"{what} of NonMaxSuppression {i + 1}", kind, str(tensor.name)))  # type: ignore[arg-type]
    return found


def _is_embedding(maker: gs.Node) -> bool:
    """Whether a node L2-normalises its input, or pools the features at the end of a residual block."""
    if maker.op == "LpNormalization":
        return bool(maker.attrs.get("p", 2) == 2)
    if maker.op in ("Div", "Mul"):
        return any(_is_norm(t, inverse=maker.op == "Mul") for t in maker.inputs[maker.op == "Div" :])
    if maker.op in POOLS:
        at = maker.inputs[0]
        while at.inputs and at.inputs[0].op in ACTIVATIONS:
            at = at.inputs[0].inputs[0]
        return bool(at.inputs) and at.inputs[0].op == "Add" and all(t.inputs for t in at.inputs[0].inputs)
    return False


def _is_norm(tensor: gs.Tensor, inverse: bool) -> bool:
    """Whether a tensor is an L2 norm along an axis, possibly with a lower bound, or with `inverse` its reciprocal."""
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op == "ReduceL2":
            return not inverse
        if node.op == "Sqrt" and not inverse:
            squares, _ = _maker(node.inputs[0], also=("Add", "Clip", "Max"))
            return squares is not None and squares.op in ("ReduceSum", "ReduceSumSquare")
        if node.op == "Reciprocal" and inverse:
            inverse = False
        elif node.op not in ("Add", "Clip", "Expand", "Max", *HANDED_ON):
            return False
        tensor = node.inputs[0]
    return False


def _maker(tensor: gs.Tensor, also: Collection[str] = ()) -> tuple[gs.Node | None, list[gs.Node]]:
    """The node that computes a tensor, and the nodes behind it that just pass its result on (HANDED_ON and `also`)."""
    between: list[gs.Node] = []
    while tensor.inputs and tensor.inputs[0].op in (*HANDED_ON, *also):
        between.append(tensor.inputs[0])
        tensor = tensor.inputs[0].inputs[0]
    return (tensor.inputs[0] if tensor.inputs else None), between


def _handed_on(tensor: gs.Tensor) -> Iterator[str]:
    """Names of the tensors before this one, through a chain of Softmax, Sigmoid and operators of HANDED_ON."""
    while tensor.inputs and tensor.inputs[0].op in ("Sigmoid", "Softmax", *HANDED_ON):
        tensor = tensor.inputs[0].inputs[0]
        yield str(tensor.name)


def _read_by_the_last_layer(tensor: gs.Tensor) -> set[str]:
    """Names of what the last Convs and Gemms before a tensor read, and of all tensors before that."""
    last, seen, pending = [], {tensor.name}, [tensor]
    while pending:
        for node in pending.pop().inputs:
            if node.op in LINEAR:
                last.append(node)
                continue
            pending += [t for t in node.inputs if t.name not in seen]
            seen.update(t.name for t in node.inputs)
    return {str(t.name) for layer in last for t in [layer.inputs[0], *_tensors_before(layer.inputs[0])]}


def _tensors_before(tensor: gs.Tensor) -> list[gs.Tensor]:
    return [t for node in _nodes_before(tensor) for t in node.inputs]


def _nodes_before(tensor: gs.Tensor) -> list[gs.Node]:
    """All nodes on which a tensor depends."""
    found: dict[int, gs.Node] = {}
    pending = [tensor]
    while pending:
        for node in pending.pop().inputs:
            if id(node) not in found:
                found[id(node)] = node
                pending += node.inputs
    return list(found.values())


def _varies(tensor: gs.Tensor) -> bool:
    return any(node.op in VARYING for node in _nodes_before(tensor))


def _class_axis(dims: Dims | None, images: int) -> int | None:
    """The axis of the classes, if all axes but it and the batch have length 1; else None."""
    if dims is None:
        return 1
    rest = [i for i in range(len(dims)) if i != images]
    wide = [i for i in rest if dims[i] != 1]
    if len(dims) <= 2:
        return rest[0] if rest else 0
    return (wide or rest)[0] if len(wide) <= 1 else None


def _are_boxes(name: str, dims: Dims | None, images: int, maker: gs.Node) -> bool:
    """Whether an output is a list of boxes (N, boxes, values): joined by Concat, with four values, or named so."""
    if dims is None or len(dims) != 3 or images:
        return False
    return maker.op == "Concat" or dims[-1] == 4 or any(word in name.lower() for word in BOX_NAMES)


def _images(dims: Dims | None, batch: str | None) -> int | None:
    """The axis of the images: the one with the name of the inputs' batch axis; None if there is none."""
    places = [i for i, d in enumerate(dims or ()) if d == batch]
    return places[0] if batch is not None and places else None


def _batch(header: onnx.GraphProto, inputs: Collection[str]) -> str | None:
    """The name of the batch axis (its dim_param), from the first input that gives it one."""
    for value in header.input:
        dims = _dims(value)
        if value.name in inputs and dims and isinstance(dims[0], str):
            return dims[0]
    return None


def _dims(value: onnx.ValueInfoProto) -> Dims | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else d.dim_param or None for d in tensor.shape.dim)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return value.type.HasField("tensor_type") and ("FLOAT" in name or name == "DOUBLE")


def _tensor(output: gs.Tensor, name: str) -> gs.Tensor:
    """The tensor called `name` on the path that leads to an output."""
    at = output
    while at.name != name:
        at = at.inputs[0].inputs[0]
    return at
