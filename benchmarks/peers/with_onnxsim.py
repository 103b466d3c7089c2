"""Prune a network with onnxsim's structured Wanda pruning; runs in the peers' environment.

    python with_onnxsim.py MODEL.onnx IMAGES.npz SHARE OUT.onnx

The share of channels to remove is the smallest, found by bisection, with which no more than a share of the MACs is
left.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import onnx
from onnxsim.pruning import apply_structured_wanda_pruning

# Images that the activations are measured on: Wanda needs few.
IMAGES, BATCH = 64, 64
BISECTIONS = 7
MOST = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("share", type=float)
    parser.add_argument("out")
    args = parser.parse_args()
    proto = onnx.load(args.model)
    ((name, images),) = np.load(args.images).items()
    images = images[:IMAGES]
    batches = [{name: images[i : i + BATCH]} for i in range(0, len(images), BATCH)]
    before = macs(proto, images.shape)

    def pruned(sparsity: float) -> tuple[onnx.ModelProto, float]:
        model = apply_structured_wanda_pruning(proto, calibration_data=batches, sparsity=sparsity)
        return model, macs(model, images.shape) / before

    low, high = 0.0, MOST
    best, left = pruned(high)
    if left > args.share:
        raise SystemExit(f"with {MOST:.0%} of the channels that it finds pruned, {left:.2f} of the MACs are left")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        model, left = pruned(middle)
        if left <= args.share:
            best, high = model, middle
        else:
            low = middle
    onnx.save(best, args.out)


def macs(proto: onnx.ModelProto, shape: tuple[int, ...]) -> int:
    """MACs of the Convs and Gemms for one image of a shape (N, C, H, W)."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    del own.graph.value_info[:]
    for axis, size in zip(own.graph.input[0].type.tensor_type.shape.dim, (1, *shape[1:]), strict=True):
        axis.dim_value = size
    for value in own.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(own).graph
    weights = {t.name: tuple(t.dims) for t in graph.initializer}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in weights]
    return sum(math.prod(weights[n.input[1]]) * math.prod(shapes[n.output[0]][2:]) for n in layers)


if __name__ == "__main__":
    main()
