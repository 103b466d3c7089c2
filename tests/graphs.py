"""Small ResNets written straight in ONNX, with He-scaled random weights, for the tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and initializers; each method adds an operator and returns its output's name."""

    def __init__(self, seed: int = 0, opset: int = 17, constants: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opset, self.constants, self.count = opset, constants, 0

    def weight(self, name: str, values: np.ndarray) -> str:
        tensor = numpy_helper.from_array(np.asarray(values), name)
        if self.constants:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        self.count += 1
        name = f"{op}_{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}:out"], name=name, **attributes))
        return f"{name}:out"

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True, **a: object
    ) -> str:
        groups = int(a.get("group", 1))  # type: ignore[call-overload]
        name = f"conv{self.count}"
        shape = (outputs, inputs // groups, kernel, kernel)
        values = self.rng.normal(size=shape) * np.sqrt(2 / (shape[1] * kernel**2))
        names = [x, self.weight(f"{name}.weight", values.astype(np.float32))]
        if bias:
            names.append(self.weight(f"{name}.bias", self.rng.normal(size=outputs).astype(np.float32) * 0.1))
        pads = [kernel // 2] * 4
        return self.add("Conv", names, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2, **a)

    def batchnorm(self, x: str, channels: int) -> str:
        name = f"bn{self.count}"
        values = {
            "scale": self.rng.uniform(0.5, 1.5, channels),
            "shift": self.rng.normal(size=channels) * 0.1,
            "mean": self.rng.normal(size=channels) * 0.1,
            "var": self.rng.uniform(0.5, 1.5, channels),
        }
        return self.add(
            "BatchNormalization", [x, *(self.weight(f"{name}.{k}", v.astype(np.float32)) for k, v in values.items())]
        )

    def model(self, output: str, shape: tuple[int | str, ...], classes: int | None = None) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None if classes is None else ["N", classes])],
            self.initializers,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        if classes is None:  # the checker wants a rank
            inferred = onnx.shape_inference.infer_shapes(proto).graph.output[0]
            proto.graph.output[0].CopyFrom(inferred)
        onnx.checker.check_model(proto, full_check=True)
        return proto


def resnet(
    blocks: tuple[int, ...] = (1, 1),
    widths: tuple[int, ...] = (8, 16),
    *,
    size: int = 8,
    shortcut: str = "A",
    batchnorm: bool = False,
    constants: bool = False,
    head: str = "gemm",
    classes: int = 5,
    seed: int = 0,
) -> onnx.ModelProto:
    """A CIFAR-style ResNet of basic blocks: input N×3×size×size, output N×classes.

    Shortcut "A" is a strided Slice and a channel Pad, "B" a 1×1 Conv. Head "gemm" is GlobalAveragePool, Flatten,
    Gemm; "matmul" is ReduceMean, MatMul, Add.
    """
    b = Builder(seed, constants=constants)

    def conv(x: str, inputs: int, outputs: int, **a: object) -> str:
        y = b.conv(x, inputs, outputs, bias=not batchnorm, **a)  # type: ignore[arg-type]
        return b.batchnorm(y, outputs) if batchnorm else y

    x = b.add("Relu", [conv("input", 3, widths[0])])
    previous = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            y = b.add("Relu", [conv(x, previous, width, stride=stride)])
            y = conv(y, width, width)
            if previous != width and shortcut == "A":
                bounds = [[0, 0], [2**31, 2**31], [2, 3], [2, 2]]
                names = [b.weight(f"slice{stage}.{k}", np.array(v)) for k, v in enumerate(bounds)]
                x = b.add("Slice", [x, *names])
                added = (width - previous) // 2
                x = b.add("Pad", [x, b.weight(f"pad{stage}", np.array([0, added, 0, 0, 0, added, 0, 0]))])
            elif previous != width:
                x = conv(x, previous, width, kernel=1, stride=stride)
            x = b.add("Relu", [b.add("Add", [y, x])])
            previous = width
    weight = (b.rng.normal(size=(classes, previous)) / np.sqrt(previous)).astype(np.float32)
    bias = b.weight("fc.bias", b.rng.normal(size=classes).astype(np.float32))
    if head == "gemm":
        x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
        x = b.add("Gemm", [x, b.weight("fc.weight", weight), bias], transB=1)
    else:
        x = b.add("ReduceMean", [x], axes=[2, 3], keepdims=0)
        x = b.add("Add", [b.add("MatMul", [x, b.weight("fc.weight", weight.T.copy())]), bias])
    return b.model(x, ("N", 3, size, size), classes)


def images(count: int = 16, size: int = 8, seed: int = 0) -> np.ndarray:
    """(count, 3, size, size) float32, standard normal."""
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)
