"""Compression and quantisation side by side: accuracy, and time of every model in one run, in turns.

    python benchmarks/precision.py resnet56-cifar10.onnx --data cifar10.npz --preset cifar10 --batch 8 \
        --targets 0.37 0.30 --work-dir runs

The rows: the original in float32, the same in INT8 by onnxruntime's quantiser alone, and ours in INT8 planned for each
share of the float32 original's time at the batch size. Accuracy is that of all test images.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from testing import accuracy, arguments, preprocessing

import hmc_onnx
from calib.measure.latency import interleaved
from calib.runtime.batching import serving_feeds
from calib.runtime.sessions import Session

# Rounds over all batch sizes: what else a machine does comes in spells.
ROUNDS = 3


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="that is planned for")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64], help="that are timed")
    parser.add_argument("--targets", type=float, nargs="*", default=[0.37, 0.30])
    parser.add_argument("--precision", default="int8", choices=["int8", "fp16", "fp32"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, help="a run that was cut off goes on from it")
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    preprocess = preprocessing(args)
    calibration = hmc_onnx.load_data(proto, args.data, preprocess, samples=args.samples, seed=args.seed)
    test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    settings = hmc_onnx.Settings(
        samples=args.samples,
        seed=args.seed,
        batch=args.batch,
        latency=True,
        provider="cpu",
        precision=args.precision,
    )
    start = time.perf_counter()
    run = hmc_onnx.Run(proto, calibration, settings, hmc_onnx.Work(work_dir=args.work_dir))
    models: dict[str, onnx.ModelProto] = {"original, fp32": proto}
    planned: dict[str, str] = {}
    if args.precision != "fp32":
        models[f"original, {args.precision} alone"] = run.served_alone
    profile = run.profile()
    print(f"profile: {time.perf_counter() - start:.0f} s, multiples of {profile.align}", flush=True)
    for target in args.targets:
        name = f"ours, {args.precision}, latency={target:g}"
        try:
            plan = run.plan(f"latency={target}")
        except hmc_onnx.HmcError as e:
            print(f"{name}: {e}", flush=True)
            continue
        models[name] = run.serve(run.apply(plan), plan)
        assert plan.latency is not None
        planned[name] = f"{plan.latency.measured:.3f}" if plan.latency.measured is not None else "–"
        gone = sum(layer.method == "removed" for layer in plan.layers.values())
        chains = sum(layer.rank > 0 for layer in plan.layers.values())
        pruned = sum(0 < len(group.removed) < group.size for group in plan.groups.values())
        print(f"{name}: {pruned} groups pruned, {chains} layers decomposed, {gone} removed", flush=True)
    print(f"made in {time.perf_counter() - start:.0f} s", flush=True)

    sessions = [Session(model) for model in models.values()]
    shares = {}
    for batch in args.batches:
        feeds = serving_feeds(calibration, batch)
        turns = [interleaved(sessions, feeds) for _ in range(ROUNDS)]
        seconds = np.concatenate([t.seconds for t in turns])
        found = type(turns[0])(seconds)
        shares[batch] = [found.ratio(i).value for i in range(len(sessions))]
    print("| model | planned | top-1 | " + " | ".join(f"time at batch {b}" for b in args.batches) + " |")
    print("|---" * (3 + len(args.batches)) + "|")
    for i, (name, model) in enumerate(models.items()):
        times = " | ".join(f"{shares[b][i]:.3f}" for b in args.batches)
        print(f"| {name} | {planned.get(name, '')} | {accuracy(model, test):.2f} | {times} |", flush=True)


if __name__ == "__main__":
    main()
