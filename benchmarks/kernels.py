"""Where the time of a model goes: the share of each operator and stage, as onnxruntime's profiler gives them.

    python benchmarks/kernels.py resnet56-cifar10.onnx --data cifar10.npz --preset cifar10 --precision int8 --batch 8

A stage is the first part of a node's name, such as layer1. The model is the original, in the precision asked for.
"""

from __future__ import annotations

from collections import defaultdict

from testing import arguments, preprocessing, table

import hmc_onnx
from calib.measure.kernel_times import kernel_times


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--precision", default="int8", choices=["fp32", "int8"])
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    images = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=256)
    settings = hmc_onnx.Settings(samples=256, precision=args.precision, batch=args.batch, provider="cpu")
    run = hmc_onnx.Run(proto, images, settings)
    found = kernel_times(run.served_alone, run.serving_feeds, run.runtime)
    assert found is not None  # as this is the CPU
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for (name, op), seconds in found.each.items():
        shares[op, name.strip("/").split("/")[0]] += seconds
    whole = sum(shares.values())
    rows = [[op, stage, f"{100 * t / whole:.1f} %"] for (op, stage), t in sorted(shares.items(), key=lambda r: -r[1])]
    print(f"{1e3 * whole:.2f} ms a run of {args.batch}\n{table(['operator', 'stage', 'share'], rows[:15])}")


if __name__ == "__main__":
    main()
