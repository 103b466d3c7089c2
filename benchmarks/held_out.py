"""Rewrites a trained ResNet as another exporter and another training would have left it, to be compressed unseen.

    python benchmarks/held_out.py resnet18-imagenette.onnx --data imagenette -o held-out.onnx --labels held-out.txt
    hmc-onnx compress held-out.onnx -o faster.onnx --data imagenette/train --test-data imagenette/val \
        --label-map held-out.txt --size 224 224 --layout NHWC --channels bgr --scale 1 \
        --mean 103.53 116.28 123.675 --target macs=0.6 --samples 256 --quick

The network given, of opset 13 to 17, takes colours as `--preset imagenet` makes them, and answers with scores. The
network written takes pixels from 0 to 255 minus the mean, blue first, in NHWC, and answers with two scores: that an
image is of the first half of the classes, or of the second. Each is the log of the sum of the exponentials of the
scores of its half. Which half the class of each folder is in is written as a label map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

STD = np.array([0.229, 0.224, 0.225])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with `train`, which has a folder a class")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="label map to write")
    args = parser.parse_args()

    if not (args.data / "train").is_dir():
        parser.error(f"there is no folder '{args.data / 'train'}': give --data a folder with `train` in it")
    folders = sorted(folder.name for folder in (args.data / "train").iterdir() if folder.is_dir())
    onnx.save(other(onnx.load(args.model), args.size), args.output)
    args.labels.write_text("".join(f"{name} {int(i >= len(folders) // 2)}\n" for i, name in enumerate(folders)))


def other(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The network with the other input and output."""
    graph = gs.import_onnx(model)
    (planes,), (logits,) = graph.inputs, graph.outputs
    classes = logits.shape[1]
    (stem,) = planes.outputs
    weight = stem.inputs[1]
    own = weight.values / (255 * STD).reshape(1, 3, 1, 1)
    stem.inputs[1] = gs.Constant(f"{weight.name}_bgr", own[:, ::-1].astype(np.float32))
    images = gs.Variable("images", np.float32, ["N", size, size, 3])
    stem.inputs[0] = gs.Variable("planes", np.float32)
    graph.nodes.append(
        gs.Node("Transpose", "to_planes", {"perm": [0, 3, 1, 2]}, inputs=[images], outputs=[stem.inputs[0]])
    )
    halves = [gs.Variable(f"half{i}", np.float32) for i in range(2)]
    sums = [gs.Variable(f"sum{i}", np.float32) for i in range(2)]
    sizes = gs.Constant("sizes", np.array([classes // 2, classes - classes // 2]))
    scores = gs.Variable("scores", np.float32, ["N", 2])
    graph.nodes.append(gs.Node("Split", "split", {"axis": 1}, inputs=[logits, sizes], outputs=halves))
    for half, total in zip(halves, sums, strict=True):
        attributes = {"axes": [1], "keepdims": 1}
        graph.nodes.append(gs.Node("ReduceLogSumExp", half.name, attributes, inputs=[half], outputs=[total]))
    graph.nodes.append(gs.Node("Concat", "both", {"axis": 1}, inputs=sums, outputs=[scores]))
    graph.inputs, graph.outputs = [images], [scores]
    graph.cleanup().toposort()
    return gs.export_onnx(graph)


if __name__ == "__main__":
    main()
