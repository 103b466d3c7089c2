"""Which way to find the ranges of activations should be the default? The original in INT8 by each of them.

    python benchmarks/calibration.py resnet56-cifar10.onnx --data cifar10.npz --preset cifar10

Prints, for each method, the seconds of quantising, and the KL divergence from the float32 original and the top-1 on
`--judged` images of the training split that no range was found on. A choice is made by these. The top-1 on the test
split stands beside them. `--seeds` draw different images.
"""

from __future__ import annotations

import statistics
import time
from typing import get_args

from testing import arguments, preprocessing, table

import hmc_onnx
from calib.runtime.quantisation import Calibration
from hmc_onnx.comparison.verification import Network, verify
from hmc_onnx.records.comparison import Verification


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=512, help="images that the ranges are found on")
    parser.add_argument("--judged", type=int, default=4096)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    proto, preprocess = hmc_onnx.load(args.model), preprocessing(args)
    test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    original = Network(proto)
    found: dict[str, list[tuple[float, Verification, Verification]]] = {}
    for seed in args.seeds:
        count = args.samples + args.judged
        drawn = hmc_onnx.load_data(proto, args.data, preprocess, samples=count, seed=seed)
        ranges, judged = drawn.split(args.samples, seed)
        for method in get_args(Calibration):
            settings = hmc_onnx.Settings(
                samples=args.samples, seed=seed, provider="cpu", precision="int8", calibration=method
            )
            run = hmc_onnx.Run(proto, ranges, settings)
            start = time.perf_counter()
            quantised = run.served_alone
            seconds = time.perf_counter() - start
            compared = [verify(original, Network(quantised), images, batches=()) for images in (judged, test)]
            found.setdefault(method, []).append((seconds, *compared))
    print(f"{args.model.name}: means over {len(args.seeds)} seeds, least and largest in brackets", flush=True)
    rows = [
        [
            method,
            spread([seconds for seconds, *_ in own], "{:.0f}"),
            spread([judged.kl for _, judged, _ in own], "{:.4f}"),
            spread([100 * (judged.b.top1 or 0) for _, judged, _ in own], "{:.2f}"),
            spread([100 * (tested.b.top1 or 0) for *_, tested in own], "{:.2f}"),
        ]
        for method, own in found.items()
    ]
    first = found[next(iter(found))][0]
    rows.insert(0, ["float32", "", "0", *(f"{100 * (v.a.top1 or 0):.2f}" for v in first[1:])])
    print(table(["ranges by", "seconds", "KL, training images", "top-1, training images", "top-1, test images"], rows))


def spread(values: list[float], form: str) -> str:
    low, mean, high = (form.format(f(values)) for f in (min, statistics.mean, max))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
