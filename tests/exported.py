"""Networks of others, with weights drawn anew.

`exported` is what torch's exporters write: the skeletons of `data/exports` (see `data/make_exports.py`), which hold no
data for float tensors above 64 elements; smaller ones are as exported. `light` are the networks that come with the onnx
package, where all weights are made by ConstantOfShape.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FOLDER = Path(__file__).parent / "data" / "exports"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SUFFIX = ".onnx.gz"
# Times He's standard deviation: activations stay moderate through 54 blocks, where each adds to an identity (GAIN)
# and where each shortcut is a convolution (CONVOLVED), which would let images fade away at the former gain.
GAIN, CONVOLVED = 0.7, 0.85
THROUGH = ("Identity", "Reshape", "Transpose", "Unsqueeze")  # on the way from a weight to the operator that reads it


def names() -> list[str]:
    """The exports there are, as topology-exporter-opset."""
    return sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))


def exported(name: str, seed: int = 0) -> onnx.ModelProto:
    """An export by its name, its emptied tensors drawn from `seed`."""
    model = onnx.load_from_string(gzip.decompress((FOLDER / f"{name}{SUFFIX}").read_bytes()))
    fill(model, CONVOLVED if name.split("-")[0].endswith("c") else GAIN, seed)
    return model


def light_names() -> list[str]:
    """The networks of the onnx package."""
    return sorted(path.name.removesuffix(".onnx") for path in LIGHT.glob("light_*.onnx"))


def light(name: str, seed: int = 0) -> onnx.ModelProto:
    """A network of the onnx package; its constants are drawn from `seed`, He-scaled."""
    model = onnx.load(LIGHT / f"{name}.onnx")
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    for node in made:
        model.graph.node.remove(node)
        shape = shapes[node.input[0]].tolist()
        model.graph.initializer.add(name=node.output[0], data_type=TensorProto.FLOAT, dims=shape)
        model.graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    fill(model, 1.0, seed)
    return model


def fill(model: onnx.ModelProto, gain: float, seed: int) -> None:
    """Draw the float tensors that hold no data, in place, each for the operator that reads it."""
    rng = np.random.default_rng(seed)
    readers: dict[str, tuple[onnx.NodeProto, int]] = {}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for position, value in enumerate(node.input):
            readers.setdefault(value, (node, position))
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    for value, tensor in tensors.items():
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) and not _has_data(tensor):
            node, position = readers[value]
            flipped = False
            while node.op_type in THROUGH:
                flipped ^= node.op_type == "Transpose"
                node, position = readers[node.output[0]]
            values = _draw(rng, tuple(tensor.dims), node, position, flipped, gain)
            tensor.raw_data = values.astype("<f4").tobytes()


def _has_data(tensor: TensorProto) -> bool:
    return bool(tensor.raw_data or tensor.float_data)


def _draw(
    rng: np.random.Generator, shape: Sequence[int], node: onnx.NodeProto, position: int, flipped: bool, gain: float
) -> np.ndarray:
    """Values for one input of a node; `flipped`: it is transposed before the node reads it."""
    kind = (node.op_type, position)
    if kind in {("BatchNormalization", 1), ("BatchNormalization", 4)}:
        return rng.uniform(0.5, 1.5, shape)
    if kind in {("BatchNormalization", 2), ("BatchNormalization", 3)}:
        return rng.normal(0, 0.1, shape)
    if kind in {("Conv", 2), ("Gemm", 2), ("Add", 1)}:
        return rng.normal(0, 0.05, shape)
    if kind == ("Mul", 1):
        return rng.uniform(0.5, 1.5, shape)
    if kind == ("Conv", 1):
        return rng.normal(0, gain * math.sqrt(2 / math.prod(shape[1:])), shape)
    if kind in {("Gemm", 1), ("MatMul", 1)}:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return rng.normal(0, gain * math.sqrt(2 / shape[transposed ^ flipped]), shape)
    raise NotImplementedError(f"no weights for input {position} of {node.op_type}")
