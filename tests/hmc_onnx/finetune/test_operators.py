"""Each rule against onnxruntime: one node, at the opsets that changed it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calib.runtime.sessions import Session
from hmc_onnx.finetune.module import GraphModule, updated
from hmc_onnx.finetune.operators import RULES
from passes.core.errors import ModelError

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((2, 4, 7, 6), np.float32)
POSITIVE = np.abs(IMAGE) + 0.5
WEIGHT = RNG.standard_normal((6, 4, 3, 3), np.float32)
SPREAD = RNG.standard_normal((4, 6, 3, 3), np.float32)  # of a ConvTranspose, inputs first
BIAS = RNG.standard_normal(6, np.float32)
CHANNEL = np.abs(RNG.standard_normal(4, np.float32)) + 0.5


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


FLOOR = {"coordinate_transformation_mode": "asymmetric"}
CORNERS = {"coordinate_transformation_mode": "align_corners"}

# operator, opset, input, other inputs (None: left out), attributes
CASES: list[tuple[str, int, np.ndarray, list[np.ndarray | None], dict[str, Any]]] = [
    ("Conv", 11, IMAGE, [WEIGHT, BIAS], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", 11, IMAGE, [WEIGHT], {"pads": [0, 1, 2, 1], "dilations": [1, 2], "kernel_shape": [3, 3]}),
    ("Conv", 11, IMAGE, [WEIGHT], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", 11, IMAGE, [WEIGHT], {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ("Conv", 11, IMAGE, [WEIGHT], {"auto_pad": "VALID"}),
    ("Conv", 11, IMAGE, [WEIGHT[:4, :2], BIAS[:4]], {"group": 2}),
    ("Conv", 11, IMAGE[..., 0], [WEIGHT[..., 0], BIAS], {"pads": [1, 2]}),
    ("Conv", 11, IMAGE[:, :, :, :, None], [WEIGHT[..., None], BIAS], {}),
    ("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {}),
    ("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {"strides": [3, 2], "pads": [0, 1, 2, 0], "output_padding": [2, 0]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD], {"dilations": [2, 1], "pads": [1, 0, 1, 0]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD[:, :3], BIAS], {"group": 2, "strides": [2, 2]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD[:, :1], BIAS[:4]], {"group": 4, "strides": [2, 2]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {"strides": [2, 2], "output_shape": [14, 12]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {"strides": [2, 2], "output_shape": [15, 14]}),
    ("ConvTranspose", 11, IMAGE, [SPREAD], {"strides": [2, 2], "output_shape": [14, 12], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", 11, IMAGE, [SPREAD], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", 11, IMAGE, [SPREAD], {"strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", 11, IMAGE, [SPREAD], {"strides": [2, 2], "auto_pad": "VALID"}),
    ("ConvTranspose", 11, IMAGE[..., 0], [SPREAD[..., 0], BIAS], {"strides": [2], "pads": [1, 0]}),
    ("ConvTranspose", 11, IMAGE[..., None], [SPREAD[..., None], BIAS], {"strides": [2, 2, 1]}),
    ("Gemm", 7, IMAGE[0, 0], [IMAGE[0, 1], IMAGE[0, 2, 0, :1]], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", 11, IMAGE[0, 0], [IMAGE[0, 1]], {"transB": 1}),
    ("Gemm", 13, IMAGE[0, 0], [IMAGE[0, 1], IMAGE[0, 1, :, 0]], {"transB": 1}),
    ("MatMul", 13, IMAGE, [IMAGE[0, 0].T.copy()], {}),
    ("MaxPool", 8, IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", 10, IMAGE, [], {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", 12, IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "dilations": [2, 1]}),
    ("MaxPool", 12, IMAGE, [], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("AveragePool", 7, IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", 11, IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", 11, IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", 11, IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", 11, IMAGE, [], {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("AveragePool", 19, IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("GlobalAveragePool", 7, IMAGE, [], {}),
    ("GlobalMaxPool", 7, IMAGE, [], {}),
    ("BatchNormalization", 7, IMAGE, [CHANNEL] * 4, {"epsilon": 1e-3}),
    ("BatchNormalization", 9, IMAGE, [CHANNEL] * 4, {}),
    ("BatchNormalization", 15, IMAGE, [CHANNEL] * 4, {"momentum": 0.8}),
    ("InstanceNormalization", 7, IMAGE, [CHANNEL] * 2, {"epsilon": 1e-3}),
    ("GroupNormalization", 18, IMAGE, [CHANNEL[:2]] * 2, {"num_groups": 2}),
    ("GroupNormalization", 21, IMAGE, [CHANNEL] * 2, {"num_groups": 2}),
    ("LayerNormalization", 17, IMAGE, [IMAGE[0, 0], IMAGE[0, 1]], {"axis": 2}),
    ("LayerNormalization", 17, IMAGE, [IMAGE[0, 0, 0]], {}),
    ("LRN", 13, IMAGE, [], {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 2.0}),
    ("Dropout", 7, IMAGE, [], {"ratio": 0.3}),
    ("Dropout", 13, IMAGE, [np.float32(0.3)], {}),
    ("Clip", 7, IMAGE, [], {"min": 0.0, "max": 0.5}),
    ("Clip", 13, IMAGE, [np.float32(0), np.float32(0.5)], {}),
    ("Clip", 13, IMAGE, [None, np.float32(0.5)], {}),
    ("LeakyRelu", 7, IMAGE, [], {"alpha": 0.2}),
    ("PRelu", 9, IMAGE, [CHANNEL.reshape(4, 1, 1)], {}),
    ("Elu", 7, IMAGE, [], {"alpha": 0.7}),
    ("Selu", 7, IMAGE, [], {}),
    ("Selu", 7, IMAGE, [], {"alpha": 1.2, "gamma": 1.3}),
    ("Celu", 12, IMAGE, [], {"alpha": 0.7}),
    ("HardSigmoid", 7, IMAGE, [], {}),
    ("HardSigmoid", 7, IMAGE, [], {"alpha": 0.3, "beta": 0.4}),
    ("Gelu", 20, IMAGE, [], {"approximate": "tanh"}),
    ("Gelu", 20, IMAGE, [], {}),
    ("Cast", 9, IMAGE, [], {"to": TensorProto.INT64}),
    ("Softmax", 11, IMAGE, [], {"axis": 2}),
    ("Softmax", 13, IMAGE, [], {"axis": 1}),
    ("LogSoftmax", 11, IMAGE, [], {}),
    ("LogSoftmax", 13, IMAGE, [], {}),
    ("Where", 9, IMAGE > 0, [IMAGE, POSITIVE], {}),
    ("Flatten", 11, IMAGE, [], {"axis": -2}),
    ("Flatten", 9, IMAGE, [], {"axis": 0}),
    ("Reshape", 7, IMAGE, [ints(0, -1, 6)], {}),
    ("Reshape", 14, IMAGE, [ints(2, 28, -1)], {"allowzero": 1}),
    ("Transpose", 7, IMAGE, [], {}),
    ("Transpose", 7, IMAGE, [], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", 11, IMAGE[:, :1], [], {"axes": [1]}),
    ("Squeeze", 13, IMAGE[:, :1], [ints(-3)], {}),
    ("Squeeze", 13, IMAGE[:, :1], [], {}),
    ("Unsqueeze", 11, IMAGE, [], {"axes": [0, 4]}),
    ("Unsqueeze", 13, IMAGE, [ints(-1, 1)], {}),
    ("Concat", 7, IMAGE, [IMAGE, POSITIVE], {"axis": 1}),
    ("Concat", 11, IMAGE, [POSITIVE], {"axis": -1}),
    ("Slice", 9, IMAGE, [], {"starts": [1, -3], "ends": [9, -1], "axes": [1, 3]}),
    ("Slice", 10, IMAGE, [ints(0), ints(2**62), ints(2), ints(2)], {}),
    ("Slice", 13, IMAGE, [ints(-1), ints(-(2**62)), ints(1), ints(-1)], {}),
    ("Slice", 13, IMAGE, [ints(1, 1), ints(2, 3)], {}),
    ("Pad", 9, IMAGE, [], {"pads": [0, 0, 1, 2, 0, 1, 0, 1], "value": 0.5}),
    ("Pad", 13, IMAGE, [ints(0, 1, 0, 0, 0, 1, 0, 0), np.float32(1.5)], {}),
    ("Pad", 18, IMAGE, [ints(1, 2, 0, 1), None, ints(-1, 2)], {}),
    ("Pad", 13, IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    ("Pad", 13, IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    ("Gather", 11, IMAGE, [ints(3, -1, 0)], {"axis": 1}),
    ("Gather", 13, IMAGE, [np.int64(-2)], {"axis": -1}),
    ("Upsample", 7, IMAGE, [], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", 9, IMAGE, [floats(1, 1, 2, 1.5)], {}),
    ("Resize", 10, IMAGE, [floats(1, 1, 2, 0.5)], {}),
    *(
        ("Resize", 13, IMAGE, [None, floats(1, 1, *scales)], {**FLOOR, "nearest_mode": rounding, "mode": "nearest"})
        for scales in ((2, 2), (1.7, 0.5), (0.6, 3))
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    *(
        ("Resize", 13, IMAGE, [None, None, ints(2, 4, *sizes)], {"coordinate_transformation_mode": c, "mode": mode})
        for c in ("half_pixel", "pytorch_half_pixel", "align_corners")
        for mode in ("nearest", "linear", "cubic")
        for sizes in ((14, 12), (9, 4))
    ),
    *(
        ("Resize", 11, IMAGE, [floats(), floats(1, 1, 2.3, 0.6)], {"coordinate_transformation_mode": c, "mode": mode})
        for c in ("half_pixel", "pytorch_half_pixel", "align_corners")
        for mode in ("nearest", "linear", "cubic")
    ),
    ("Resize", 13, IMAGE, [None, None, ints(2, 4, 1, 1)], {"coordinate_transformation_mode": "pytorch_half_pixel"}),
    ("Resize", 13, IMAGE, [None, None, ints(2, 4, 1, 1)], {**CORNERS, "mode": "linear"}),
    ("Resize", 18, IMAGE, [None, None, ints(14, 9)], {"mode": "linear", "axes": [2, 3]}),
    ("Resize", 19, IMAGE[..., 0], [None, floats(1, 1, 2)], {"mode": "linear"}),
    ("Resize", 19, IMAGE[..., None], [None, floats(1, 1, 2, 1.5, 1)], {"mode": "linear"}),
    ("Expand", 8, IMAGE[:, :1], [ints(2, 4, 1, 6)], {}),
    ("Tile", 13, IMAGE, [ints(1, 2, 1, 3)], {}),
    ("Shape", 13, IMAGE, [], {}),
    ("Shape", 15, IMAGE, [], {"start": 1, "end": -1}),
    ("Size", 13, IMAGE, [], {}),
    ("ConstantOfShape", 9, ints(2, 3), [], {}),
    ("ConstantOfShape", 9, ints(2, 3), [], {"value": helper.make_tensor("", TensorProto.INT64, [1], [7])}),
    ("Range", 11, np.int64(1), [np.int64(9), np.int64(3)], {}),
    ("ArgMax", 13, IMAGE, [], {"axis": 1, "keepdims": 0}),
]  # fmt: skip
for name in ("Abs", "Ceil", "Cos", "Exp", "Floor", "Identity", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sin", "Tanh"):
    CASES.append((name, 7, IMAGE, [], {}))
for name in ("Softplus", "Softsign", "Erf", "Round", "Sign"):
    CASES.append((name, 13, IMAGE, [], {}))
CASES += [("HardSwish", 14, IMAGE, [], {}), ("Mish", 18, IMAGE, [], {}), ("Not", 7, IMAGE > 0, [], {})]
for name in ("Log", "Sqrt"):
    CASES.append((name, 7, POSITIVE, [], {}))
for name in ("Add", "Div", "Mul", "Sub"):
    CASES += [(name, 7, IMAGE, [CHANNEL.reshape(4, 1, 1)], {}), (name, 14, ints(7, -7), [ints(2, 2)], {})]
CASES += [("Pow", 13, POSITIVE, [np.float32(1.5)], {})]
for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    CASES.append((name, 16, np.round(IMAGE), [np.round(POSITIVE)], {}))
for name in ("And", "Or"):
    CASES.append((name, 7, IMAGE > 0, [POSITIVE > 1], {}))
for name in ("Max", "Min", "Sum"):
    CASES.append((name, 8, IMAGE, [POSITIVE, CHANNEL.reshape(4, 1, 1)], {}))
for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"):
    CASES += [
        (name, 11, IMAGE, [], {"axes": [2, 3]}),
        (name, 11, IMAGE, [], {"keepdims": 0}),
        (name, 18, IMAGE, [ints(-1, 1)], {"keepdims": 0}),
        (name, 18, IMAGE, [], {"noop_with_empty_axes": 1}),
    ]


def model(
    op: str, opset: int, x: np.ndarray, others: list[np.ndarray | None], attributes: dict[str, Any], outputs: int = 1
) -> onnx.ModelProto:
    x = np.asarray(x)
    names = ["" if v is None else f"c{i}" for i, v in enumerate(others)]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, ["x", *names], made, op.lower(), **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.ValueInfoProto(name=n) for n in made],
        [numpy_helper.from_array(np.asarray(v), n) for v, n in zip(others, names, strict=True) if v is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_a_rule_computes_what_onnxruntime_does(case: Any) -> None:
    proto = model(*case)
    expected = Session(proto).run({"x": np.asarray(case[2])})[0]
    (found,) = GraphModule(proto)(torch.from_numpy(np.array(case[2])))
    assert found.shape == expected.shape and found.detach().numpy().dtype == expected.dtype
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_split_in_all_its_forms() -> None:
    for opset, sizes, attributes, outputs in (
        (11, [], {"axis": 1, "split": [1, 3]}, 2),
        (13, [ints(3, 1)], {"axis": 1}, 2),
        (13, [], {"axis": 1}, 2),
        (18, [], {"axis": -2, "num_outputs": 3}, 3),
    ):
        proto = model("Split", opset, IMAGE, sizes, attributes, outputs)
        found = GraphModule(proto)(torch.from_numpy(IMAGE))
        for ours, theirs in zip(found, Session(proto).run({"x": IMAGE}), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


def test_every_rule_is_tried() -> None:
    assert set(RULES) == {case[0] for case in CASES} | {"Split"}


@pytest.mark.parametrize(
    ("op", "opset", "attributes", "what"),
    [
        ("DepthToSpace", 13, {"blocksize": 2}, "DepthToSpace"),
        ("AveragePool", 19, {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilations"),
        ("Pad", 19, {"pads": [1] * 8, "mode": "wrap"}, "wrap"),
        ("Resize", 13, {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, "asymmetric"),
        ("Resize", 13, {"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
        ("Resize", 13, {"mode": "cubic", "cubic_coeff_a": -0.5}, "cubic_coeff_a is -0.5"),
        ("Resize", 18, {"mode": "linear", "antialias": 1}, "antialias"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(op: str, opset: int, attributes: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=f"'{op.lower()}'.*{what}"):
        GraphModule(model(op, opset, IMAGE, [], attributes))


@pytest.mark.parametrize(
    ("sizes", "attributes", "what"),
    [
        ((2, 2, 7, 6), {}, "batch or channels"),
        ((2, 4, 1, 6), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, "length 1"),
    ],
)
def test_sizes_that_torch_cannot_resize_to_are_refused(
    sizes: tuple[int, ...], attributes: dict[str, Any], what: str
) -> None:
    module = GraphModule(model("Resize", 13, IMAGE, [None, None, ints(*sizes)], attributes))
    with pytest.raises(ModelError, match=f"'resize'.*{what}"):
        module(torch.from_numpy(IMAGE))


@pytest.mark.parametrize(
    "case",
    [
        ("Resize", 13, IMAGE, [None, floats(1, 1, 2, 2)], {}),
        ("Resize", 13, IMAGE, [None, floats(1, 1, 2, 2)], {"mode": "linear"}),
        ("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    ],
    ids=["nearest", "linear", "ConvTranspose"],
)
def test_the_gradient_is_that_of_the_rule(case: Any) -> None:
    module = GraphModule(model(*case)).double()
    x = torch.from_numpy(IMAGE[:1, :, :3, :2]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: module(v)[0], (x,))
    module(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_the_weights_of_a_conv_transpose_are_trained_in_its_initializers() -> None:
    proto = model("ConvTranspose", 11, IMAGE, [SPREAD, BIAS], {"strides": [2, 2]})
    module = GraphModule(proto)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)
    changed = updated(proto, module.values())
    assert module.trained == {"c0", "c1"}
    twice = Session(changed).run({"x": IMAGE})[0]
    np.testing.assert_allclose(twice, 2 * Session(proto).run({"x": IMAGE})[0], rtol=1e-5, atol=1e-5)


def test_a_custom_domain_is_refused() -> None:
    proto = model("Relu", 13, IMAGE, [], {})
    proto.graph.node[0].domain = "com.example"
    with pytest.raises(ModelError, match=r"com\.example\.Relu"):
        GraphModule(proto)
