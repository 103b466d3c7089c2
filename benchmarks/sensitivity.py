"""How well sensitivities that are measured on a few training images tell what a change does to other images.

    python benchmarks/sensitivity.py MODEL.onnx --data cifar10.npz --preset cifar10 --images 64 256 --others 1280

Every layer's kernel is cut to a half and an eighth of its rank, one at a time. For each number of training images, at
temperature 1 and at the one that sensitivities are measured at: Spearman's correlation with the KL divergence (at 1) on
other images (of the test split, or with `--split train` further training images), the spread of the logarithm of the
ratio to that, and the median of the standard errors. A last line for each number is of changes that run on half of the
images where that is enough (`known` in `calib/measure/sensitivity.py`), with the number that they run on on average.
"""

from __future__ import annotations

import numpy as np
import onnx
from scipy.stats import spearmanr
from testing import arguments, preprocessing

import hmc_onnx
from calib.measure.divergence import divergences, temperature
from calib.measure.sensitivity import known
from calib.measure.walk import Walk
from calib.runtime.batching import calibration_chunks, input_shapes
from hmc_onnx.analysis.find_compressible import find_compressible
from passes.graph.layers import write_layer
from passes.normal_form.normalise import normalise

CHUNK = 64


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--others", type=int, default=1280)
    parser.add_argument("--split", default="test", choices=["train", "test"], help="of the other images")
    args = parser.parse_args()
    proto, preprocess = hmc_onnx.load(args.model), preprocessing(args)
    most = max(args.images)
    if args.split == "train":  # one draw, so that no image is in both parts
        drawn = hmc_onnx.load_data(proto, args.data, preprocess, samples=most + args.others)
        parts = drawn.part(most)
    else:
        parts = tuple(
            hmc_onnx.load_data(proto, args.data, preprocess, samples=count, split=split)
            for split, count in (("train", most), ("test", args.others))
        )
    chunks = [chunk for data in parts for chunk in calibration_chunks(normalise(proto), data, len(data), CHUNK)]
    reference, changed = outputs(proto, chunks, input_shapes(proto, parts[0]))
    truth = measured(reference, changed, slice(most, None), 1.0).mean(1)
    print(f"{len(truth)} changes, {args.others} other images")
    print("| images | temperature | correlation | spread of the ratio's log | standard error |\n|---|---|---|---|---|")
    warm = temperature([reference[:most]])
    for images in args.images:
        for at in (1.0, warm):
            nats = measured(reference, changed, slice(images), at)
            found = np.maximum(nats.mean(1), 1e-12)
            error = np.median(nats.std(1) / np.sqrt(images) / found)
            print(f"| {images} | {at:.2f} | {compared(found, truth)} | {error:.2f} |", flush=True)
        nats = measured(reference, changed, slice(images), warm)
        stopped = [own[: images // 2] if known(own[: images // 2], images) else own for own in nats]
        found = np.array([max(own.mean(), 1e-12) for own in stopped])
        on_average = np.mean([len(own) for own in stopped])
        print(f"| {images}, on average {on_average:.0f} | {warm:.2f} | {compared(found, truth)} | |", flush=True)


def compared(found: np.ndarray, truth: np.ndarray) -> str:
    """Two cells of the table: correlation, and the spread of the ratio's logarithm, of nats by change."""
    usable = truth > 0
    spread = np.std(np.log(found[usable] / truth[usable]))
    return f"{spearmanr(found, truth).statistic:.3f} | {spread:.2f}"


def outputs(
    proto: onnx.ModelProto, chunks: list[dict[str, np.ndarray]], inputs: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the original (images, classes), and of each change (changes, images, classes)."""
    model = normalise(proto)
    compressible = find_compressible(model, inputs)
    nodes = {n.name: n for n in model.graph.nodes}
    for name, subject in compressible.layers.items():
        write_layer(model.graph, nodes[name], subject.layer.weight, subject.layer.bias)
    walk, found = Walk(model, chunks), []
    reference = np.concatenate(walk.tail([]).outputs({})[0])
    for name, subject in compressible.layers.items():
        walk.advance([subject.layer.input])
        weight, initializer = subject.layer.weight, nodes[name].inputs[1].name
        tail = walk.tail([initializer])
        u, s, v = np.linalg.svd(weight.reshape(len(weight), -1).astype(np.float64), full_matrices=False)
        for share in (2, 8):
            rank = max(len(s) // share, 1)
            cut = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(weight.shape).astype(weight.dtype)
            found.append(np.concatenate(tail.outputs({initializer: cut})[0]))
    return reference, np.stack(found)


def measured(reference: np.ndarray, changed: np.ndarray, images: slice, at: float) -> np.ndarray:
    """Nats (changes, images)."""
    return np.stack([divergences([[reference[images]]], [[own[images]]], temperature=at) for own in changed])


if __name__ == "__main__":
    main()
