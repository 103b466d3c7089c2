"""Networks with random weights, put together node by node, of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper


class Network:
    """An image classifier, put together node by node; every method returns the name of its output.

    Args:
        size: height and width of the input.
        data: where to write the weights as they are drawn, so that a model of any size is made in little memory;
            they are kept in the model if it is not given.
    """

    def __init__(self, size: int, data: BinaryIO | None = None) -> None:
        self.size = size
        self.data = data
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def weight(self, name: str, shape: Sequence[int], scale: float) -> str:
        """An initializer, normal with standard deviation `scale`; returns its name."""
        values = self.random.standard_normal(shape, np.float32) * np.float32(scale)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        if self.data is None:
            tensor.raw_data = values.tobytes()
        else:
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": values.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self.data.write(values.tobytes())
        self.initializers.append(tensor)
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Any operator with one output."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}:out"], name=name, **attributes))
        return f"{name}:out"

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, gain: float = 1.0) -> str:
        """A Conv as exporters leave it once the batch norm behind it is folded: with a bias."""
        name = f"conv_{len(self.nodes)}"
        scale = gain * math.sqrt(2 / (inputs * kernel**2))
        weight = self.weight(f"{name}:weight", (outputs, inputs, kernel, kernel), scale)
        bias = self.weight(f"{name}:bias", (outputs,), 0.1)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", x, weight, bias, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        """A fully connected layer."""
        name = f"gemm_{len(self.nodes)}"
        weight = self.weight(f"{name}:weight", (outputs, inputs), 1 / math.sqrt(inputs))
        return self.node("Gemm", x, weight, self.weight(f"{name}:bias", (outputs,), 0.1), transB=1)

    def model(self, output: str, classes: int) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, self.size, self.size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes])],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def classified(self, x: str, inputs: int, classes: int) -> onnx.ModelProto:
        """The finished model, with a ResNet's head behind its features."""
        features = self.node("Flatten", self.node("GlobalAveragePool", x), axis=1)
        return self.model(self.gemm(features, inputs, classes), classes)


def residual_trunk(network: Network, blocks: int, channels: int, kernel: int) -> str:
    """Blocks of two Convs each, all of one width, behind a stem."""
    x = network.node("Relu", network.conv("input", 3, channels, kernel))
    gain = 1 / math.sqrt(blocks)  # so that the sum of all blocks stays moderate
    for _ in range(blocks):
        y = network.node("Relu", network.conv(x, channels, channels, kernel))
        y = network.conv(y, channels, channels, kernel, gain=gain)
        x = network.node("Relu", network.node("Add", y, x))
    return x


def residual_network(network: Network, blocks: int, channels: int, kernel: int) -> onnx.ModelProto:
    """The trunk with a ResNet's head."""
    return network.classified(residual_trunk(network, blocks, channels, kernel), channels, 10)


def bottlenecks(*depths: int) -> onnx.ModelProto:
    """torchvision's topology: bottlenecks, the stride at their 3×3 Conv, a 1×1 Conv as each stage's first shortcut.

    Args:
        depths: blocks of each of the four stages; (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) ResNet-152.
    """
    network = Network(224)
    x = network.node("Relu", network.conv("input", 3, 64, 7, 2))
    x = network.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    gain = 1 / math.sqrt(sum(depths))  # so that the sum of all blocks stays moderate
    for width, blocks, first_stride in zip((64, 128, 256, 512), depths, (1, 2, 2, 2), strict=True):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y = network.node("Relu", network.conv(x, channels, width, 1))
            y = network.node("Relu", network.conv(y, width, width, 3, stride))
            y = network.conv(y, width, 4 * width, 1, gain=gain)
            if block == 0:
                x = network.conv(x, channels, 4 * width, 1, stride)
            x = network.node("Relu", network.node("Add", y, x))
            channels = 4 * width
    return network.classified(x, channels, 1000)
