"""Top-1, and divergence from the original, after compression without training, on a whole test split.

    python benchmarks/accuracy.py MODEL.onnx --data cifar10.npz --preset cifar10 \
        --targets 0.6 0.5 0.4 --strategies hmc prune lowrank nahc ahc

One profile serves all plans. Prints the seconds of the profile and of each plan and its repair, and a table.
"""

from __future__ import annotations

import time
from pathlib import Path

from testing import arguments, outputs, preprocessing

import hmc_onnx
from calib.measure.divergence import kl_divergence, top1
from passes.decompose import DECOMPOSITIONS
from passes.graph.cost import total
from passes.normal_form.normalise import normalise

STRATEGIES = ["hmc", "prune", "lowrank", "nahc", "ahc"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--what", choices=["macs", "params"], default="macs")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["hmc"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--align", type=int, default=hmc_onnx.Settings().align)
    parser.add_argument(
        "--others", type=int, default=0, help="compare on so many further training images, and not on the test split"
    )
    parser.add_argument("--positions", type=int, default=hmc_onnx.Settings().positions)
    parser.add_argument("--kl-samples", type=int, help="images that sensitivity is measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=Path, help="read the profile from here, or write it here if it is not there")
    parser.add_argument(
        "--without", nargs="+", default=[], choices=[*DECOMPOSITIONS], help="decompositions to do without, such as cp"
    )
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    preprocess = preprocessing(args)
    count = args.samples + args.others
    calibration = hmc_onnx.load_data(proto, args.data, preprocess, samples=count, seed=args.seed)
    if args.others:
        calibration, test = calibration.part(args.samples)
    else:
        test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    settings = hmc_onnx.Settings(
        samples=args.samples,
        seed=args.seed,
        align=args.align,
        positions=args.positions,
        kl_samples=args.kl_samples,
    )

    run = hmc_onnx.Run(proto, calibration, settings)
    start = time.perf_counter()
    if args.profile and args.profile.exists():
        profile = hmc_onnx.Profile.load(args.profile)
    else:
        profile = run.profile()
        if args.profile:
            profile.save(args.profile)
    layers = [
        layer.model_copy(update={"choices": [c for c in layer.choices if c.method not in args.without]})
        for layer in profile.layers
    ]
    profile = profile.model_copy(update={"layers": layers})
    before, answers, labels = total(normalise(proto)), outputs(proto, test), test.labels
    assert labels is not None
    print(
        f"{args.model.name}: top-1 {100 * top1(answers, labels):.2f} %, profile {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    rows = {}
    for strategy in args.strategies:
        for target in args.targets:
            start = time.perf_counter()
            try:
                plan = hmc_onnx.solve(profile, hmc_onnx.parse_target(f"{args.what}={target}"), strategy)
            except hmc_onnx.HmcError as e:
                rows[strategy, target] = "–"
                print(f"{strategy:8} {target:.2f}: {e}", flush=True)
                continue
            compressed = run.apply(plan)
            seconds = time.perf_counter() - start
            after, found = total(normalise(compressed)), outputs(compressed, test)
            after_top1, nats = 100 * top1(found, labels), kl_divergence(answers, found)
            rows[strategy, target] = f"{after_top1:.2f}"
            print(
                f"{strategy:8} {target:.2f}: top-1 {after_top1:.2f} %, {nats:.4f} nats, "
                f"MACs {after.macs / before.macs:.3f}, "
                f"parameters {after.parameters / before.parameters:.3f}, plan and repair {seconds:.0f} s",
                flush=True,
            )
    print(f"\n| top-1 at {args.what} | " + " | ".join(f"{t:g}" for t in args.targets) + " |")
    print("|---" * (len(args.targets) + 1) + "|")
    for strategy in args.strategies:
        print(f"| {strategy} | " + " | ".join(rows[strategy, t] for t in args.targets) + " |")


if __name__ == "__main__":
    main()
