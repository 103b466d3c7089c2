"""Time reached and top-1 kept by plans for a share of the time, and by plans for a share of the MACs, without training.

    python benchmarks/latency.py MODEL.onnx --data cifar10.npz --preset cifar10 --batch 8 \
        --targets 0.8 0.7 0.6 0.5 --macs 0.7 0.6 0.5 0.4 0.3

For each target: the share of the time that was planned (of a network of the planned shapes, before its repair), that
which the finished file takes beside the original, that of another network of the planned shapes in the same turns (what
is between the first two is the machine's doing, between the last two the repair's), the original's time in these turns,
and top-1 on a whole test split. Plans for a share of the MACs are made from a profile of their own, as `--target
macs=…` would, and timed alike.
"""

from __future__ import annotations

import time

from testing import accuracy, arguments, preprocessing, sampled

import hmc_onnx
from calib.measure.latency import calm, interleaved
from calib.runtime.batching import serving_feeds
from calib.runtime.sessions import Session
from hmc_onnx.rewriting.planned_shapes import shaped

# How long to wait for the machine to be as calm as it was.
PATIENCE = 300.0
HEADER = """| target | planned | the file's | twin's | original's, ms | MACs | top-1 | seconds |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--targets", type=float, nargs="*", default=[0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--macs", type=float, nargs="*", default=[])
    parser.add_argument("--samples", type=int, help="images to calibrate with; default: 1024, with --quick 256")
    parser.add_argument("--quick", action="store_true", help="as --quick of the command")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes = sampled(args)
    samples = sizes["samples"]

    proto, preprocess = hmc_onnx.load(args.model), preprocessing(args)
    calibration = hmc_onnx.load_data(proto, args.data, preprocess, samples=samples, seed=args.seed)
    test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    feeds = serving_feeds(calibration, args.batch)
    known = interleaved([Session(proto)], feeds).latency(0).value
    print(f"{args.model.name}: top-1 {accuracy(proto, test):.2f} %, {1e3 * known:.2f} ms at batch {args.batch}")
    for what, shares in (("latency", args.targets), ("macs", args.macs)):
        if not shares:
            continue
        start = time.perf_counter()
        given = sizes | {"seed": args.seed, "batch": args.batch, "provider": "cpu"}
        settings = hmc_onnx.Settings(**given, latency=what == "latency")
        run = hmc_onnx.Run(proto, calibration, settings)
        profile = run.profile()
        known = min(known, profile.latency.seconds if profile.latency else known)
        print(f"profile for {what}: {time.perf_counter() - start:.0f} s", flush=True)
        print(HEADER)
        for share in shares:
            start = time.perf_counter()
            try:
                plan = run.plan(f"{what}={share}")
            except hmc_onnx.HmcError as e:
                print(f"| {what}={share:g} | {e} |", flush=True)
                continue
            model = run.apply(plan)
            seconds = time.perf_counter() - start
            twin = shaped(run, plan).finished()
            timings = calm([Session(m) for m in (proto, model, twin)], feeds, known, PATIENCE)
            known = min(known, timings.latency(0).value)
            ratio, beside = timings.ratio(1), timings.ratio(2).value
            planned = f"{plan.latency.measured:.3f}" if plan.latency and plan.latency.measured else "–"
            print(
                f"| {what}={share:g} | {planned} | {ratio.value:.3f} ± {ratio.uncertainty:.3f} | {beside:.3f} "
                f"| {1e3 * timings.latency(0).value:.2f} | {plan.macs / profile.macs:.3f} "
                f"| {accuracy(model, test):.2f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
