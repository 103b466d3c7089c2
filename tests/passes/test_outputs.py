"""What outputs are taken for, on small graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from zoo import Builder

from passes.core.errors import ModelError, SettingsError
from passes.graph.model import Model
from passes.graph.outputs import KINDS, parse_kinds
from passes.normal_form.normalise import normalise


def pooled(b: Builder) -> str:
    return b.node("Flatten", b.node("GlobalAveragePool", b.conv("input", 3, 8)))


def normed(b: Builder, x: str, form: str) -> str:
    """x divided by its L2 norm, as exporters write it."""
    if form == "LpNormalization":
        return b.node("LpNormalization", x, axis=1)
    if form == "ReduceL2":  # torch.nn.functional.normalize
        norm = b.node("ReduceL2", x, axes=[1], keepdims=1)
        norm = b.node("Clip", norm, b.const(np.float32(1e-12)))
        return b.node("Div", x, b.node("Expand", norm, b.node("Shape", x)))
    squares = b.node("ReduceSum", b.node("Mul", x, x), b.const([1]), keepdims=1)
    root = b.node("Sqrt", b.node("Add", squares, b.const(np.float32(1e-12))))
    if form == "Reciprocal":
        return b.node("Mul", x, b.node("Reciprocal", root))
    return b.node("Div", x, root)


def features(b: Builder) -> str:
    """The pooled sum of a residual block."""
    x = b.conv("input", 3, 8)
    x = b.node("Relu", b.node("Add", b.conv(x, 8, 8), x))
    return b.node("Flatten", b.node("GlobalAveragePool", x))


def sequence(b: Builder) -> str:
    """Features of the columns of an image, (T, N, C), as recurrent networks take them."""
    x = b.node("Transpose", b.mean(b.conv("input", 3, 8), (2,)), perm=[2, 0, 1])
    return b.matmul(x, 8, 10)


def rows(b: Builder) -> str:
    """The values above a bound, however many there are."""
    x = pooled(b)
    return b.node("Compress", x, b.node("Greater", b.mean(x, (1,)), b.const(np.float32(0))), axis=0)


def detector(b: Builder) -> str:
    """Boxes chosen by NonMaxSuppression."""
    boxes = b.node("Reshape", b.conv("input", 3, 4), b.const([0, 64, 4]))
    scores = b.node("Reshape", b.conv("input", 3, 1), b.const([0, 1, 64]))
    limits = b.const([5]), b.const(np.float32(0.5)), b.const(np.float32(0.1))
    chosen = b.node("Cast", b.node("NonMaxSuppression", boxes, scores, *limits), to=TensorProto.FLOAT)
    return chosen


Part = Callable[[Builder], str]
ALONE: dict[str, tuple[Part, str]] = {
    "logits": (lambda b: b.gemm(pooled(b), 8, 5), "scores"),
    "probabilities": (lambda b: b.node("Softmax", b.gemm(pooled(b), 8, 5), axis=1), "probabilities"),
    "log-probabilities": (lambda b: b.node("LogSoftmax", b.gemm(pooled(b), 8, 5), axis=1), "scores"),
    "logits by a Conv": (lambda b: b.conv(b.node("GlobalAveragePool", b.conv("input", 3, 8)), 8, 5, 1), "scores"),
    "one logit": (lambda b: b.gemm(pooled(b), 8, 1), "logit"),
    "one probability": (lambda b: b.node("Sigmoid", b.gemm(pooled(b), 8, 1)), "probability"),
    "one probability, squeezed": (
        lambda b: b.node("Squeeze", b.node("Sigmoid", b.gemm(pooled(b), 8, 1)), b.const([1])),
        "probability",
    ),
    "several labels": (lambda b: b.node("Sigmoid", b.gemm(pooled(b), 8, 5)), "probability"),
    "a number that is not negative": (lambda b: b.node("Softplus", b.gemm(pooled(b), 8, 1)), "regression"),
    "a distance": (lambda b: b.node("ReduceL2", b.gemm(pooled(b), 8, 5), axes=[1], keepdims=0), "regression"),
    **{
        f"embedding by {form}": (lambda b, form=form: normed(b, b.gemm(pooled(b), 8, 16), form), "embedding")
        for form in ("LpNormalization", "ReduceL2", "Sqrt", "Reciprocal")
    },
    "features": (features, "embedding"),
    "segmentation": (lambda b: b.conv("input", 3, 5), "map"),
    "segmentation with Softmax": (lambda b: b.node("Softmax", b.conv("input", 3, 5), axis=1), "probabilities"),
    "classes of pixels": (lambda b: b.node("ArgMax", b.conv("input", 3, 5), axis=1), "scores"),
    "a mask": (lambda b: b.node("Sigmoid", b.conv("input", 3, 1)), "map"),
    "boxes": (
        lambda b: b.node(
            "Concat",
            *(b.node("Reshape", b.conv("input", 3, 8, stride), b.const([0, -1, 8])) for stride in (1, 3)),
            axis=1,
        ),
        "boxes",
    ),
    "steps of a sequence": (sequence, "map"),
    "rows that vary": (rows, "other"),
    "a constant": (lambda b: b.node("Constant", value_floats=[1.0, 2.0]), "other"),
    "integers": (lambda b: b.node("Cast", pooled(b), to=TensorProto.INT64), "other"),
    "a sequence of tensors": (lambda b: b.node("SplitToSequence", pooled(b), axis=1), "other"),
}


def model(b: Builder, *names: str) -> onnx.ModelProto:
    return b.model(list(names))


@pytest.mark.parametrize("form", [Model, normalise])
@pytest.mark.parametrize("name", ALONE)
def test_an_output_alone(name: str, form: Callable[[onnx.ModelProto], Model]) -> None:
    build, kind = ALONE[name]
    b = Builder()
    (found,) = form(model(b, build(b))).outputs[:1]
    assert found.kind == kind
    assert found.what and found.judged_by


def test_the_axes_of_classes_and_of_images() -> None:
    b = Builder()
    classes, pixels, steps = b.gemm(pooled(b), 8, 5), b.conv("input", 3, 5), sequence(b)
    names = [classes, b.node("Softmax", pixels, axis=1), b.node("Softmax", steps, axis=2), steps]
    names += [b.node("ArgMax", pixels, axis=1)]
    found = Model(model(b, *names)).outputs
    assert [(o.axis, o.images) for o in found] == [(1, 0), (1, 0), (2, 1), (1, 1), (1, 0)]
    assert [o.tensor for o in found] == [*names[:4], pixels]


def test_of_a_class_alone_its_scores_are_compared_and_classes_come_first() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    logits = b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 4, 5)
    picked = b.node("Squeeze", b.node("ArgMax", logits, axis=1), b.const([1]))
    assert Model(b.model([picked])).judged == [logits]
    assert Model(b.model([x, picked])).judged == [logits, x]
    assert Model(b.model([picked, x])).judged == [logits, x]
    assert Model(b.model([x, logits, picked])).judged == [logits, x]


def renamed(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    for value, name in zip(proto.graph.output, names, strict=True):
        for node in proto.graph.node:
            node.input[:] = [name if i == value.name else i for i in node.input]
            node.output[:] = [name if o == value.name else o for o in node.output]
        value.name = name
    return proto


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [o.kind for o in Model(proto).outputs]


def test_beside_class_scores() -> None:
    def heads(*widths: int) -> onnx.ModelProto:
        b = Builder()
        x = pooled(b)
        return b.model([b.gemm(x, 8, width) for width in widths])

    assert kinds(heads(32, 10)) == ["scores", "scores"]  # two tasks, as far as the graph tells
    assert kinds(renamed(heads(32, 10), "embedding", "logits")) == ["embedding", "scores"]
    assert kinds(renamed(heads(32, 10), "vector", "logits")) == ["embedding", "scores"]
    assert kinds(renamed(heads(7, 10), "age_logits", "sex_logits")) == ["scores", "scores"]

    b = Builder()
    hidden = b.gemm(pooled(b), 8, 32)
    assert kinds(b.model([hidden, b.gemm(b.node("Relu", hidden), 32, 10)])) == ["embedding", "scores"]

    b = Builder()
    logits = b.gemm(pooled(b), 8, 10)
    assert kinds(b.model([logits, b.node("Softmax", logits)])) == ["scores", "probabilities"]

    b = Builder()
    x = pooled(b)
    assert kinds(b.model([b.node("Softmax", b.gemm(x, 8, 2)), b.gemm(x, 8, 10)])) == ["probabilities", "regression"]


def test_before_a_selection_its_boxes_and_scores_are_compared() -> None:
    b = Builder()
    name = detector(b)
    found = Model(b.model([name])).outputs
    assert [(o.kind, o.name) for o in found] == [
        ("other", name),
        ("boxes", "boxes of NonMaxSuppression 1"),
        ("map", "scores of NonMaxSuppression 1"),
    ]


def test_what_the_user_says_counts() -> None:
    b = Builder()
    x = pooled(b)
    pixels = b.conv("input", 3, 5)
    names = [b.gemm(x, 8, 32), pixels, b.node("ArgMax", b.gemm(x, 8, 4), axis=1)]
    found = Model(model(b, *names))
    found.kinds = parse_kinds([f"{names[0]}=embedding", f"{pixels}=scores", f"{names[2]}=other"])
    assert [(o.kind, o.tensor, o.axis) for o in found.outputs[:2]] == [
        ("embedding", names[0], 1),
        ("scores", pixels, 1),
    ]
    assert [o.kind for o in found.outputs] == ["embedding", "scores", "other"]
    found.kinds = {"nobody": "map"}
    with pytest.raises(SettingsError, match="no output of that name"):
        _ = found.outputs
    found.kinds = {names[2]: "map"}
    assert len(found.outputs) == 3  # the scores that the class is chosen by are floats


@pytest.mark.parametrize("text", ["logits", "=scores", "logits=", "logits=classes"])
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(SettingsError, match="write NAME=kind"):
        parse_kinds([text])


def test_names_may_hold_any_character() -> None:
    assert parse_kinds(["a=b:0=Map"]) == {"a=b:0": "map"}
    assert set(KINDS) >= {"scores", "other"}


def test_a_model_of_which_nothing_can_be_compared() -> None:
    b = Builder()
    with pytest.raises(ModelError, match="no output that can be compared"):
        _ = Model(b.model([b.node("Cast", pooled(b), to=TensorProto.INT64)])).compared


def test_a_float_output_that_an_input_is_handed_on_to_is_other() -> None:
    b = Builder()
    logits = b.gemm(pooled(b), 8, 5)
    proto = b.model([logits])
    proto.graph.node.append(helper.make_node("Identity", ["input"], ["same"]))
    proto.graph.output.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, ["N", 3, 8, 8]))
    assert kinds(proto) == ["scores", "other"]
