"""Normalisation: many ways to write a network become one, and its outputs stay as they were."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from zoo import Builder, assert_same, images, pad_channels, parsed, resnet, run

from passes.graph.model import Model
from passes.normal_form.fold_affine import FoldAffine
from passes.normal_form.matmul_to_gemm import MatMulToGemm
from passes.normal_form.name_nodes import NameNodes
from passes.normal_form.normalise import normalise

IMAGE = ("N", 3, 8, 8)


def normalised(proto: onnx.ModelProto, feeds: np.ndarray | None = None) -> onnx.ModelProto:
    """The normal form, after it is shown to be checked, to keep the signature, and to compute the same."""
    before = proto.SerializeToString(deterministic=True)
    done = normalise(proto).finished()
    assert proto.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(done, full_check=True)
    assert list(done.graph.output) == list(proto.graph.output)
    assert list(done.graph.input) == list(proto.graph.input)
    feeds = images(3, 8) if feeds is None else feeds
    assert_same(run(done, feeds), run(proto, feeds))
    return done


def operators(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]


RESNETS = [
    {"shortcut": s, "option_a": a, "batchnorm": n, "head": h, "weights": w, "opset": o}
    for (s, a), n, h, (w, o) in product(
        [("A", "plain"), ("A", "torchscript"), ("A", "dynamo"), ("B", "plain")],
        ["folded", "nodes"],
        ["gap_flatten_gemm", "reducemean_matmul_add"],
        [("initializers", 17), ("constants", 13), ("initializers", 20), ("constants", 11)],
    )
]


@pytest.mark.parametrize("form", RESNETS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_form_of_a_resnet_becomes_the_same_nodes(form: dict) -> None:
    done = normalised(resnet((1, 1), (4, 8), size=8, **form))
    slices = 0 if form["shortcut"] == "B" else 1 if form["option_a"] == "plain" else 2
    expected = {"Conv": 5, "Relu": 5, "Add": 2, "Gemm": 1}
    expected |= {"Conv": 6} if form["shortcut"] == "B" else {"Slice": slices, "Pad": 1}
    expected |= {"ReduceMean": 1} if form["head"].startswith("reduce") else {"GlobalAveragePool": 1, "Flatten": 1}
    assert Counter(operators(done)) == expected


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_folding_batch_norm_gives_the_weights_that_were_folded_before_export(block: str) -> None:
    nodes, folded = (normalise(resnet(batchnorm=b, block=block)) for b in ("nodes", "folded"))
    ours = {n.name: n for n in nodes.graph.nodes if n.op == "Conv"}
    theirs = {n.name: n for n in folded.graph.nodes if n.op == "Conv"}
    assert ours.keys() == theirs.keys()
    for name, node in ours.items():
        for mine, other in zip(node.inputs[1:], theirs[name].inputs[1:], strict=True):
            np.testing.assert_allclose(mine.values, other.values, rtol=1e-6, atol=1e-7)


def test_a_normal_form_is_its_own_normal_form() -> None:
    once = normalise(resnet((1, 1), (4, 8), weights="constants", option_a="torchscript", batchnorm="nodes"))
    twice = normalise(once.finished())
    assert twice.finished() == once.finished()


def test_everything_about_the_file_but_its_nodes_is_kept() -> None:
    proto = resnet((1,), (4,), size=8, weights="constants", batchnorm="nodes")
    proto.producer_version, proto.domain, proto.model_version, proto.doc_string = "1.2", "zoo", 7, "a model"
    proto.metadata_props.add(key="trained on", value="nothing")
    proto.graph.doc_string = "a graph"
    proto.graph.input[0].doc_string = "an image"
    done = normalised(proto)
    for message in (done, proto):
        message.graph.ClearField("node")
        message.graph.ClearField("initializer")
        message.graph.ClearField("value_info")
    assert done == proto


def test_several_inputs_and_outputs_stay_in_order_and_dynamic_axes_keep_their_names() -> None:
    b = Builder(constants=True)
    x, y = b.conv("b", 3, 4), b.conv("a", 3, 4)
    total = b.node("Add", x, y)
    shape = ("batch", 3, "height", "width")
    proto = b.model([total, x], {"b": shape, "a": shape})
    done = normalise(proto).finished()
    assert [*done.graph.input, *done.graph.output] == [*proto.graph.input, *proto.graph.output]
    assert done.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    feeds = {"a": images(2, 7, seed=1), "b": images(2, 7, seed=2)}
    assert_same(run(done, feeds), run(proto, feeds))


# Weights


def test_weights_in_constant_nodes_become_initializers_of_the_same_name() -> None:
    b = Builder(constants=True)
    proto = b.model(b.conv("input", 3, 4))
    done = normalised(proto)
    assert operators(done) == ["Conv"]
    made = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in proto.graph.node if n.op_type == "Constant"}
    kept = {t.name: numpy_helper.to_array(t) for t in done.graph.initializer}
    assert kept.keys() == made.keys()
    assert all(np.array_equal(kept[k], made[k]) for k in made)


def test_numbers_and_lists_in_constant_nodes_become_initializers_too() -> None:
    done = normalised(
        parsed(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N,3,8,8] input) => (float[N,64] output) {
                half = Constant<value_float = 0.5>()
                scales = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>()
                axis = Constant<value_ints = [1]>()
                x = Mul(input, half)
                y = Mul(x, scales)
                z = ReduceSum<keepdims = 0>(y, axis)
                output = Flatten(z)
            }"""
        )
    )
    assert operators(done) == ["Mul", "Mul", "ReduceSum", "Flatten"]


def test_identities_between_a_weight_and_its_conv_go() -> None:
    b = Builder()
    weight = b.node("Identity", b.node("Identity", b.const(b.normal(4, 3, 3, 3))))
    x = b.node("Identity", "input")
    done = normalised(b.model(b.node("Relu", b.node("Conv", x, weight, kernel_shape=[3, 3]))))
    assert operators(done) == ["Conv", "Relu"]
    assert list(done.graph.initializer[0].dims) == [4, 3, 3, 3]


def test_identities_in_front_of_an_output_go_and_its_name_stays() -> None:
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 4))
    y = b.node("Identity", x)
    done = normalised(b.model([y, b.node("Tanh", x)]))
    assert operators(done) == ["Conv", "Relu", "Tanh"]


def test_identities_that_give_a_tensor_a_second_output_stay() -> None:
    b = Builder()
    x = b.node("Relu", "input")
    outputs = [x, b.node("Identity", x), b.node("Identity", x), b.node("Identity", "input")]
    assert operators(normalised(b.model(outputs))) == ["Relu"] + ["Identity"] * 3


def test_identities_in_the_branches_of_an_if_stay() -> None:
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] input, bool raw) => (float[N,3,8,8] output) {
            x = Tanh(input)
            y = Identity(x)
            z = Relu(y)
            output = If(raw) <
                then_branch = yes () => (float[N,3,8,8] a) { a = Identity(y) },
                else_branch = no () => (float[N,3,8,8] c) { c = Neg(z) }
            >
        }"""
    )
    done = normalise(proto).finished()
    assert operators(done) == ["Tanh", "Relu", "If"]
    for raw in (False, True):
        feeds = {"input": images(2, 8), "raw": np.array(raw)}
        assert_same(run(done, feeds), run(proto, feeds))


def test_a_weight_that_is_computed_from_constants_is_one() -> None:
    b = Builder(constants=True)
    weight = b.node("Transpose", b.node("Mul", b.const(b.normal(5, 192)), b.const(np.float32(0.1))), perm=[1, 0])
    proto = b.model(b.node("MatMul", b.node("Flatten", "input"), weight))
    done = normalised(proto)
    assert operators(done) == ["Flatten", "Gemm"]


def test_a_computed_weight_is_folded_whatever_its_size_unless_the_file_would_grow() -> None:
    b = Builder(constants=True)
    weight = b.node("Mul", b.const(b.normal(192, 100)), b.const(np.float32(0.1)))
    x = b.node("MatMul", b.node("Flatten", "input"), weight)
    huge = b.node("Expand", b.const(np.float32(1)), b.const([3000, 100]))
    done = normalised(b.model(b.node("ReduceSum", b.node("Mul", b.node("Unsqueeze", x, b.const([1])), huge))))
    assert Counter(operators(done)) == {
        "Flatten": 1,
        "Gemm": 1,
        "Expand": 1,
        "Unsqueeze": 1,
        "Mul": 1,
        "ReduceSum": 1,
    }
    assert sum(t.ByteSize() for t in done.graph.initializer) < 100_000


def test_nodes_that_nothing_reads_go() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    b.node("Relu", b.conv(x, 4, 4))
    assert operators(normalised(b.model(b.node("Tanh", x)))) == ["Conv", "Tanh"]


@pytest.mark.parametrize("constants", [False, True])
def test_pads_that_torchscript_computes_in_the_graph_become_a_constant(constants: bool) -> None:
    b = Builder(constants=constants)
    proto = b.model(pad_channels(b, "input", 2, 3, "torchscript", "/shortcut"))
    assert len({"ConstantOfShape", "Concat", "Reshape", "Slice", "Transpose", "Cast"} & set(operators(proto))) == 6
    done = normalised(proto)
    assert operators(done) == ["Pad"]
    (pads,) = (numpy_helper.to_array(t) for t in done.graph.initializer)
    assert pads.tolist() == [0, 2, 0, 0, 0, 3, 0, 0]


def test_initializers_that_are_inputs_are_folded_like_others() -> None:
    proto = resnet((1,), (4,), size=8, batchnorm="nodes", opset=11)
    proto.ir_version = 3
    types = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    proto.graph.input.extend(types)
    done = normalise(proto).finished()
    assert "BatchNormalization" not in operators(done)
    assert_same(run(done, images(2, 8)), run(proto, images(2, 8)))
    assert {t.name for t in done.graph.initializer} <= {i.name for i in done.graph.input}  # as IR version 3 has it


# Batch norm


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_batch_norm_behind_a_conv_is_folded(bias: bool, group: int, epsilon: float) -> None:
    b = Builder()
    x = b.conv("input", 3, 4, at="/stem")
    y = b.batchnorm(b.conv(x, 4, 8, group=group, bias=bias, at="/c"), 8, at="/bn", epsilon=epsilon)
    done = normalised(b.model(y))
    assert [n.name for n in done.graph.node] == ["/stem/Conv", "/c/Conv"]
    assert [len(n.input) for n in done.graph.node] == [3, 3]


def test_batch_norm_behind_a_conv_with_an_empty_bias_is_folded() -> None:
    b = Builder()
    y = b.batchnorm(b.node("Conv", "input", b.const(b.normal(4, 3, 3, 3)), ""), 4)
    assert operators(normalised(b.model(y))) == ["Conv"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [{}, {"output_padding": [1, 1], "pads": [1, 1, 1, 1]}])
@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_behind_a_transposed_conv_is_folded_unless_that_is_grouped(
    bias: bool, padding: dict, group: int
) -> None:
    b = Builder()
    x = b.conv("input", 3, 6)
    read = [b.const(b.normal(6, 8 // group, 3, 3)), *([b.const(b.normal(8))] if bias else [])]
    y = b.batchnorm(b.node("ConvTranspose", x, *read, strides=[2, 2], group=group, **padding), 8)
    left = [] if group == 1 else ["BatchNormalization"]
    assert operators(normalised(b.model(y))) == ["Conv", "ConvTranspose", *left]


def test_batch_norm_behind_a_1d_and_a_3d_conv_is_folded() -> None:
    b = Builder()
    x = b.batchnorm(b.conv("input", 3, 4, (3,)), 4)
    assert operators(normalised(b.model(x, ("N", 3, 9)), images(3, 9)[..., 0])) == ["Conv"]
    b = Builder()
    x = b.batchnorm(b.conv("input", 3, 4, (3, 1, 3)), 4)
    feeds = np.random.default_rng(0).normal(size=(2, 3, 5, 6, 7)).astype(np.float32)
    assert operators(normalised(b.model(x, ("N", 3, 5, 6, 7)), feeds)) == ["Conv"]


def test_folding_keeps_half_precision_weights_half() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float16)
    values = {k: np.random.default_rng(1).uniform(0.5, 1.5, 4).astype(np.float16) for k in ("s", "b", "m", "v")}
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float16[N,3,8,8] input) => (float16[N,4,6,6] y) {
            c = Conv(input, w)
            y = BatchNormalization(c, s, b, m, v)
        }""",
        w=weight,
        **values,
    )
    done = normalise(proto).finished()
    assert operators(done) == ["Conv"]
    assert {t.data_type for t in done.graph.initializer} == {TensorProto.FLOAT16}
    x = images(2, 8).astype(np.float16)
    assert_same(run(done, x), run(proto, x), tolerance=3e-3)


def conv_then_batchnorm(b: Builder) -> tuple[str, str]:
    x = b.conv("input", 3, 4)
    return x, b.batchnorm(x, 4)


def test_a_conv_with_a_second_reader_keeps_its_batch_norm() -> None:
    b = Builder()
    x, y = conv_then_batchnorm(b)
    done = normalised(b.model(b.node("Add", b.node("Relu", x), y)))
    assert Counter(operators(done)) == {"Conv": 1, "BatchNormalization": 1, "Relu": 1, "Add": 1}


def test_a_conv_that_is_an_output_keeps_its_batch_norm() -> None:
    b = Builder()
    assert operators(normalised(b.model([*conv_then_batchnorm(b)]))) == ["Conv", "BatchNormalization"]


def test_a_conv_that_the_inside_of_an_if_reads_keeps_its_batch_norm() -> None:
    values = Builder().normal
    proto = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] input, bool raw) => (float[N,4,8,8] output) {
            x = Conv<pads = [1, 1, 1, 1]>(input, w)
            y = BatchNormalization(x, s, b, m, v)
            output = If(raw) <
                then_branch = yes () => (float[N,4,8,8] a) { a = Identity(x) },
                else_branch = no () => (float[N,4,8,8] c) { c = Relu(y) }
            >
        }""",
        w=values(4, 3, 3, 3),
        **dict(zip("sbmv", np.abs(values(4, 4)), strict=True)),
    )
    done = normalise(proto).finished()
    assert operators(done)[:2] == ["Conv", "BatchNormalization"]
    for raw in (False, True):
        feeds = {"input": images(2, 8), "raw": np.array(raw)}
        assert_same(run(done, feeds), run(proto, feeds))


def test_batch_norm_in_training_mode_is_kept() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    y = b.batchnorm(x, 4, training_mode=1, outputs=3)
    assert operators(normalised(b.model(y))) == ["Conv", "BatchNormalization"]


def test_batch_norm_with_computed_statistics_is_kept() -> None:
    b = Builder()
    x = b.conv("input", 3, 4)
    one = b.const(np.ones(4, np.float32))
    mean = b.node("ReduceMean", x, axes=[0, 2, 3], keepdims=0)
    done = normalised(b.model(b.node("BatchNormalization", x, one, one, mean, one)))
    assert operators(done).count("BatchNormalization") == 1


def test_batch_norm_behind_something_else_is_kept() -> None:
    b = Builder()
    y = b.batchnorm(b.node("Relu", b.conv("input", 3, 4)), 4)
    assert operators(normalised(b.model(b.batchnorm(y, 4)))) == ["Conv", "Relu"] + ["BatchNormalization"] * 2


def twice(same: bool) -> onnx.ModelProto:
    """A Conv called on the image and on its negative, with one BatchNormalization behind both calls, or one each."""
    b = Builder()
    weight, bias = b.const(b.normal(3, 3, 3, 3), "w"), b.const(b.normal(3), "b")
    scale, *others = (b.const(b.rng.uniform(0.5, 1.5, 3).astype(np.float32), "bn") for _ in range(5))
    ends = []
    for x, own in (("input", scale), (b.node("Neg", "input"), scale if same else others.pop())):
        y = b.node("Conv", x, weight, bias, pads=[1] * 4)
        y = b.node("BatchNormalization", y, own, *others[:3])
        ends.append(b.node("Mul", y, b.const(b.normal(3, 1, 1), "gain")))
    return b.model(b.node("Concat", *ends, axis=1))


def test_a_weight_that_several_convs_read_stays_one_where_equal_nodes_follow_them() -> None:
    """Batch normalisation is folded; the gains behind it differ and are not."""
    done = normalised(twice(same=True))
    assert Counter(operators(done)) == {"Neg": 1, "Conv": 2, "Mul": 2, "Concat": 1}
    first, second = (n for n in done.graph.node if n.op_type == "Conv")
    assert first.input[1:] == second.input[1:] == ["w", "b"]


def test_a_weight_that_several_convs_read_is_not_changed_where_other_nodes_follow_them() -> None:
    proto = twice(same=False)
    done = normalised(proto)
    assert Counter(operators(done)) == Counter(operators(proto))
    values = {t.name: numpy_helper.to_array(t) for t in done.graph.initializer}
    np.testing.assert_array_equal(values["w"], numpy_helper.to_array(proto.graph.initializer[0]))


def test_a_weight_that_is_read_by_a_node_of_another_kind_is_not_changed() -> None:
    b = Builder()
    weight = b.const(b.normal(3, 3, 3, 3), "w")
    y = b.batchnorm(b.node("Conv", "input", weight, pads=[1] * 4), 3)
    proto = b.model(b.node("ConvTranspose", y, weight, pads=[1] * 4))
    assert operators(normalised(proto)) == ["Conv", "BatchNormalization", "ConvTranspose"]


def test_a_weight_that_an_identity_hands_on_stays_shared() -> None:
    """torch's exporter writes an Identity for each further use of a weight."""
    b = Builder()
    weight, bias = b.const(b.normal(3, 3, 3, 3), "w"), b.const(b.normal(3), "b")
    x = b.node("Conv", "input", weight, bias, pads=[1] * 4)
    for _ in range(2):
        x = b.node("Conv", x, b.node("Identity", weight), b.node("Identity", bias), pads=[1] * 4)
    done = normalised(b.model(x))
    assert [(n.op_type, *n.input[1:]) for n in done.graph.node] == [("Conv", "w", "b")] * 3


def test_matmuls_of_one_matrix_go_on_sharing_it_and_their_bias() -> None:
    b = Builder()
    weight, bias = b.const(b.normal(3, 4), "w"), b.const(b.normal(4), "b")
    ends = [b.node("Add", b.node("MatMul", x, weight), bias) for x in ("input", b.node("Neg", "input"))]
    done = normalise(b.model(b.node("Sub", *ends), ("N", 3))).finished()
    assert Counter(operators(done)) == {"Neg": 1, "Gemm": 2, "Sub": 1}
    assert len({tuple(n.input[1:]) for n in done.graph.node if n.op_type == "Gemm"}) == 1


def test_the_number_of_folds_is_returned() -> None:
    model = Model(resnet((1, 1), (4, 8), batchnorm="nodes"))
    assert FoldAffine().rewrite(model) == 5
    assert FoldAffine().rewrite(model) == 0


# MatMul and Add


@pytest.mark.parametrize("swap", [False, True], ids=["x + b", "b + x"])
@pytest.mark.parametrize("shape", [(5,), (1, 5)], ids=str)
def test_matmul_and_add_become_a_gemm(swap: bool, shape: tuple[int, ...]) -> None:
    b = Builder()
    y = b.node("MatMul", b.node("Flatten", "input"), b.const(b.normal(192, 5, scale=0.1)), at="/fc")
    bias = b.const(b.normal(*shape))
    done = normalised(b.model(b.node("Add", *((bias, y) if swap else (y, bias)))))
    assert [(n.op_type, n.name) for n in done.graph.node] == [("Flatten", "/Flatten"), ("Gemm", "/fc/MatMul")]


def a_bias_for_each_token(b: Builder) -> str:
    x = b.node("Reshape", "input", b.const([0, 3, 64]))
    return b.node("Add", b.node("MatMul", x, b.const(b.normal(64, 5))), b.const(b.normal(3, 1)))


def a_bias_for_each_row(b: Builder) -> str:
    x = b.node("Reshape", "input", b.const([5, -1]))
    return b.node("Add", b.node("MatMul", x, b.const(b.normal(192, 5))), b.const(b.normal(5, 1)))


def a_bias_that_makes_rows(b: Builder) -> str:
    x = b.node("Reshape", "input", b.const([1, -1]))
    return b.node("Add", b.node("MatMul", x, b.const(b.normal(960, 5))), b.const(b.normal(5, 1)))


def a_bias_of_rank_three(b: Builder) -> str:
    x = b.node("Flatten", "input")
    return b.node("Add", b.node("MatMul", x, b.const(b.normal(192, 5))), b.const(b.normal(1, 1, 5)))


def no_constant_bias(b: Builder) -> str:
    x = b.node("Flatten", "input")
    y = b.node("MatMul", x, b.const(b.normal(192, 192, scale=0.1)))
    return b.node("Add", y, x)


def a_product_that_is_read_twice(b: Builder) -> str:
    y = b.node("MatMul", b.node("Flatten", "input"), b.const(b.normal(192, 5, scale=0.1)))
    return b.node("Mul", b.node("Add", y, b.const(b.normal(5))), y)


def a_product_that_is_doubled(b: Builder) -> str:
    y = b.node("MatMul", b.node("Flatten", "input"), b.const(b.normal(192, 5, scale=0.1)))
    return b.node("Add", y, y)


def a_constant_on_the_left(b: Builder) -> str:
    x = b.node("Transpose", b.node("Flatten", "input"), perm=[1, 0])
    return b.node("Add", b.node("MatMul", b.const(b.normal(5, 192, scale=0.1)), x), b.const(b.normal(5)))


@pytest.mark.parametrize(
    "build",
    [
        a_bias_for_each_token,
        a_bias_for_each_row,
        a_bias_that_makes_rows,
        a_bias_of_rank_three,
        no_constant_bias,
        a_product_that_is_read_twice,
        a_product_that_is_doubled,
        a_constant_on_the_left,
    ],
)
@pytest.mark.parametrize("opset", [10, 17])
def test_what_is_no_bias_stays_a_sum(build, opset: int) -> None:
    b = Builder(opset=opset)
    proto = b.model(build(b), (5, 3, 8, 8))
    done = normalised(proto, images(5, 8))
    before = operators(proto).count("Add")
    assert operators(done).count("Add") == before
    assert operators(done).count("Gemm") == (build is not a_constant_on_the_left)


@pytest.mark.parametrize("bias", [None, (), (5,), (1, 1, 1, 5)])
@pytest.mark.parametrize("opset", [9, 13, 18])
def test_a_dense_layer_on_a_pooled_image_in_nhwc_becomes_a_gemm(opset: int, bias: tuple[int, ...] | None) -> None:
    b = Builder(opset=opset)
    x = b.mean(b.node("Transpose", "input", perm=[0, 2, 3, 1]), (1, 2), keepdims=1)
    y = b.matmul(x, 3, 5, bias=False)
    y = y if bias is None else b.node("Add", y, b.const(b.normal(*bias)))
    done = normalised(b.model({b.node("Sigmoid", y): ("N", 1, 1, 5)}))
    assert operators(done) == ["Transpose", "ReduceMean", "Flatten", "Gemm", "Reshape", "Sigmoid"]


def flattened(b: Builder, x: str, form: str) -> str:
    """A Flatten as exporters write it that compute the shape."""
    if form == "paddle":
        batch = b.node("Slice", b.node("Shape", x), b.const([0]), b.const([1]), b.const([0]))
    else:
        batch = b.node("Gather", b.node("Shape", x), b.const(np.array(0)))
        batch = b.node("Unsqueeze", batch, b.const([0])) if b.opset >= 13 else b.node("Unsqueeze", batch, axes=[0])
    return b.node("Reshape", x, b.node("Concat", batch, b.const([-1]), axis=0))


@pytest.mark.parametrize("bias", [(), (1,), (5,), (1, 5)])
@pytest.mark.parametrize("form", ["paddle", "torch"])
@pytest.mark.parametrize("opset", [11, 13, 14])
def test_a_matmul_of_an_open_batch_behind_a_computed_flatten_becomes_a_gemm(
    opset: int, form: str, bias: tuple[int, ...]
) -> None:
    b = Builder(opset=opset)
    x = b.matmul(flattened(b, "input", form), 192, 5, bias=False)
    y = b.node("Add", x, b.const(b.normal(*bias)))
    assert operators(normalised(b.model({y: ("N", 5)}), images(5, 8)))[-1] == "Gemm"


def tokens(b: Builder, channels: int = 4) -> str:
    """(N, 64, channels): one vector for each pixel."""
    x = b.node("Reshape", b.conv("input", 3, channels), b.const([0, channels, -1]))
    return b.node("Transpose", x, perm=[0, 2, 1])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("opset", [9, 13, 18])
def test_a_matmul_on_tokens_becomes_a_gemm_for_every_batch(opset: int, count: int, bias: bool) -> None:
    b = Builder(opset=opset)
    y = b.matmul(tokens(b), 4, 5, bias=bias, at="up")
    proto = b.model({b.node("Relu", y): ("N", 64, 5)})
    done = normalised(proto, images(count, 8))
    assert operators(done) == ["Conv", "Reshape", "Transpose", "Flatten", "Gemm", "Reshape", "Relu"]
    gemm = done.graph.node[4]
    assert (gemm.name, gemm.input[1]) == ("up/MatMul", "up.weight")


@pytest.mark.parametrize("count", [1, 3])
def test_a_matmul_on_the_pixels_of_an_image_becomes_a_gemm(count: int) -> None:
    b = Builder()
    x = b.node("Transpose", b.conv("input", 3, 4), perm=[0, 2, 3, 1])
    done = normalised(b.model({b.matmul(x, 4, 5): ("N", 8, 8, 5)}), images(count, 8))
    assert operators(done) == ["Conv", "Transpose", "Flatten", "Gemm", "Reshape"]


def test_matmuls_on_tokens_go_on_sharing_their_weight() -> None:
    b = Builder()
    weight, x = b.const(b.normal(4, 4), "shared"), tokens(b)
    for _ in range(2):
        x = b.node("Relu", b.node("MatMul", x, weight))
    done = normalised(b.model({x: ("N", 64, 4)}))
    assert [n.input[1] for n in done.graph.node if n.op_type == "Gemm"] == ["shared", "shared"]
    assert [t.name for t in done.graph.initializer].count("shared") == 1


def test_a_matmul_on_tokens_whose_number_is_not_known_stays() -> None:
    b = Builder()
    y = b.matmul(tokens(b), 4, 5)
    done = normalised(b.model({y: ("N", "T", 5)}, ("N", 3, "H", "W")))
    assert operators(done) == ["Conv", "Reshape", "Transpose", "MatMul", "Add"]


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("count", [1, 3])
def test_a_linear_layer_over_a_sequence_with_the_batch_on_its_second_axis_becomes_a_gemm(
    opset: int, count: int
) -> None:
    """(T, N, C) @ W, as recurrent and attention layers are exported: for one image alone N is 1."""
    b = Builder(opset=opset)
    x = b.mean(b.conv("input", 3, 4), (2,))
    x = b.node("Transpose", x, perm=[2, 0, 1])
    done = normalised(b.model({b.matmul(x, 4, 5): (8, "N", 5)}), images(count, 8))
    assert operators(done) == ["Conv", "ReduceMean", "Transpose", "Flatten", "Gemm", "Reshape"]


def test_a_matmul_with_two_axes_that_grow_with_the_batch_stays() -> None:
    b = Builder()
    flat = b.node("Flatten", "input")
    square = b.node("MatMul", flat, b.node("Transpose", flat, perm=[1, 0]))
    x = b.node("Unsqueeze", square, b.const([2]))  # (N, N, 1)
    done = normalised(b.model({b.matmul(x, 1, 5): ("N", "N", 5)}), images(3, 8))
    assert "Gemm" not in operators(done)


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (1,), ()])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("swap", [True, False])
def test_a_constant_for_each_channel_behind_a_conv_is_its_bias(shape: tuple[int, ...], own: bool, swap: bool) -> None:
    b = Builder()
    terms = b.conv("input", 3, 4, bias=own), b.const(b.normal(*shape), "added")
    proto = b.model(b.batchnorm(b.node("Add", *(terms[::-1] if swap else terms)), 4))
    done = normalised(proto, images(3, 8))
    assert operators(done) == ["Conv"]
    assert len(done.graph.initializer) == 2


def test_scales_shifts_and_batch_norms_behind_a_conv_are_all_folded() -> None:
    b = Builder()
    x = b.batchnorm(b.conv("input", 3, 4, bias=False), 4)  # of Caffe, which has scale and shift apart
    x = b.node("Add", b.node("Mul", x, b.const(b.normal(4, 1, 1))), b.const(b.normal(4, 1, 1)))
    x = b.node("Mul", b.node("Sub", x, b.const(b.normal(1, 4, 1, 1))), b.const(np.float32(0.5)))
    assert operators(normalised(b.model(b.node("Relu", x)))) == ["Conv", "Relu"]


@pytest.mark.parametrize("shape", [(4,), (1, 1, 1, 4), (), (1, 1)])
def test_a_bias_in_nhwc_is_folded_into_the_conv(shape: tuple[int, ...]) -> None:
    b = Builder()
    x = b.node("Transpose", b.conv("input", 3, 4, bias=False), perm=[0, 2, 3, 1])
    x = b.node("Transpose", b.node("Add", x, b.const(b.normal(*shape))), perm=[0, 3, 1, 2])
    proto = b.model(b.node("Relu", b.batchnorm(x, 4)))
    assert operators(normalised(proto)) == ["Conv", "Transpose", "Transpose", "Relu"]


@pytest.mark.parametrize("shape", [(8, 1), (8, 8, 1), (4, 1, 1), (1, 8, 1, 1)])
def test_a_constant_of_other_axes_in_nhwc_is_no_bias(shape: tuple[int, ...]) -> None:
    b = Builder()
    size = 4 if shape == (4, 1, 1) else 8
    x = b.node("Transpose", b.conv("input", 3, 4), perm=[0, 2, 3, 1])
    proto = b.model(b.node("Add", x, b.const(b.normal(*shape))), (5, 3, size, size))
    assert operators(normalised(proto, images(5, size))) == ["Conv", "Transpose", "Add"]


def test_a_conv_taken_from_a_constant_is_not_one_less_it() -> None:
    b = Builder()
    proto = b.model(b.node("Sub", b.const(b.normal(4, 1, 1)), b.conv("input", 3, 4)))
    assert operators(normalised(proto)) == ["Conv", "Sub"]


@pytest.mark.parametrize("shape", [(4,), (1, 1, 8, 8), (8, 1), (5, 1, 1, 1), (1, 1, 4, 1, 1)])
def test_a_constant_of_other_axes_behind_a_conv_stays_a_sum(shape: tuple[int, ...]) -> None:
    b = Builder()
    size = 4 if shape == (4,) else 8
    proto = b.model(b.node("Add", b.conv("input", 3, 4), b.const(b.normal(*shape))), (5, 3, size, size))
    assert operators(normalised(proto, images(5, size))) == ["Conv", "Add"]


@pytest.mark.parametrize("opset", [10, 17])
def test_a_product_that_is_an_output_stays_a_sum(opset: int) -> None:
    b = Builder(opset=opset)
    y = b.node("MatMul", b.node("Flatten", "input"), b.const(b.normal(192, 5, scale=0.1)))
    done = normalised(b.model([y, b.node("Add", y, b.const(b.normal(5)))]))
    assert operators(done) == ["Flatten", "Gemm", "Add"]


def test_a_bias_that_two_sums_share_is_kept_for_both() -> None:
    b = Builder()
    bias = b.const(b.normal(1, 5), "bias")
    x = b.node("Flatten", "input")
    parts = [b.node("Add", b.node("MatMul", x, b.const(b.normal(192, 5, scale=0.1))), bias) for _ in range(2)]
    done = normalised(b.model(b.node("Concat", *parts, axis=1)))
    assert operators(done).count("Gemm") == 2


def test_the_number_of_fusions_is_returned() -> None:
    model = Model(resnet((1,), (4,), head="reducemean_matmul_add"))
    assert MatMulToGemm().rewrite(model) == 1
    assert MatMulToGemm().rewrite(model) == 0


# Names


def test_nodes_keep_their_names() -> None:
    proto = resnet((1, 1), (4, 8), batchnorm="nodes", weights="constants", head="reducemean_matmul_add")
    names = {n.name for n in proto.graph.node}
    done = {n.name: n.op for n in normalise(proto).graph.nodes}
    assert done.keys() <= names
    assert done["/layer1.0.conv1/Conv"] == "Conv"
    assert done["linear/MatMul"] == "Gemm"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["", "", ""], ["Relu:t0", "Relu:t1", "Relu:t2"]),
        (["a", "a", "a"], ["a", "a#2", "a#3"]),
        (["a", "a", "a#2"], ["a", "a#3", "a#2"]),
        (["a#2", "a", "a"], ["a#2", "a", "a#3"]),
        (["Relu:t1", "", "b"], ["Relu:t1", "Relu:t1#2", "b"]),
    ],
)
def test_missing_names_are_given_and_double_ones_told_apart(names: list[str], expected: list[str]) -> None:
    tensors = [gs.Variable("input", np.float32, (1, 2)), *(gs.Variable(f"t{i}") for i in range(len(names)))]
    pairs = zip(names, tensors[:-1], tensors[1:], strict=True)
    b = Builder()
    model = Model(b.model(b.node("Relu", "input"), (1, 2)))
    model.graph.nodes = [gs.Node("Relu", name, {}, [x], [y]) for name, x, y in pairs]
    assert NameNodes().rewrite(model) == sum(a != b for a, b in zip(names, expected, strict=True))
    assert [n.name for n in model.graph.nodes] == expected


def test_a_model_without_names_normalises_to_unique_ones() -> None:
    proto = resnet((1, 1), (4, 8), size=8, batchnorm="nodes", weights="constants", option_a="torchscript")
    for node in proto.graph.node:
        node.ClearField("name")
    done = normalised(proto)
    names = [n.name for n in done.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
