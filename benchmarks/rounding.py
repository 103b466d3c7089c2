"""Does it pay to round to INT8 while the layers are repaired? Top-1 on all test images.

    python benchmarks/rounding.py resnet20-cifar10.onnx --data cifar10.npz --preset cifar10 --targets macs=0.5

For each target one plan is carried out in three ways, and the result is quantised by onnxruntime: with weights that are
rounded by the quantiser alone, rounded to the nearest step while the layers are repaired, and rounded with error
feedback. Beside them: the original in float32, and quantised alone.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from testing import accuracy, arguments, preprocessing

import hmc_onnx
from hmc_onnx.execution.context import Context
from hmc_onnx.rewriting import applying
from hmc_onnx.rewriting.rounding import rounded


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--targets", nargs="+", default=["macs=0.5"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--work-dir", type=Path, help="a run that was cut off goes on from it")
    args = parser.parse_args()

    proto, preprocess = hmc_onnx.load(args.model), preprocessing(args)
    calibration = hmc_onnx.load_data(proto, args.data, preprocess, samples=args.samples)
    test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    settings = hmc_onnx.Settings(samples=args.samples, provider="cpu", precision="int8")
    run = hmc_onnx.Run(proto, calibration, settings, hmc_onnx.Work(work_dir=args.work_dir))
    alone = run.served_alone
    print(f"original: {accuracy(proto, test):.2f}, quantised alone: {accuracy(alone, test):.2f}")
    print(
        "| target | rounded by the quantiser | to the nearest in the repair | with error feedback |\n|---|---|---|---|"
    )
    ways = (
        mock.patch.object(Context, "weight_levels", 0),
        mock.patch.object(applying, "rounded", lambda weight, levels, second=None: rounded(weight, levels)),
        mock.patch.object(applying, "rounded", rounded),
    )
    for target in args.targets:
        plan, cells = run.plan(target), []
        for way in ways:
            with way:
                compressed = run.apply(plan)
            cells.append(f"{accuracy(run.serve(compressed), test):.2f}")
        print(f"| {target} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
