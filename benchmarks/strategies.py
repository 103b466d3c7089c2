"""Top-1 of HMC's free choice beside that of single strategies, over several seeds, and whether D predicts the choice.

    python benchmarks/strategies.py resnet56-cifar10.onnx --data cifar10.npz --preset cifar10 --work-dir runs/r56 \
        --targets macs=0.5 macs=0.4 latency=0.5 --cp with without --batch 8
    python benchmarks/strategies.py resnet18.onnx --data imagenette --preset imagenet --size 128 128 --work-dir runs/r18

One profile for each seed, kind of target and set of decompositions serves all strategies. Top-1 is of all test images,
in the precision that is served: mean and standard deviation over the seeds. Behind each table stands where another
strategy is ahead of `hmc`, with the mean and the standard deviation of the difference seed by seed; and Spearman's rank
correlation of the difference D of a layer (`hmc_onnx.planning.hmc_groups`: near 1, low rank loses less, near -1,
pruning) with what `hmc` gave it: -1 for pruned, 0 for both, 1 for decomposed. Layers that are kept, and those that
allow one method only, are left out of it. What is finished is kept in the work folder; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from scipy.stats import spearmanr
from testing import Rows, accuracy, arguments, preprocessing, sampled, table

import hmc_onnx
from calib.data.calibration import CalibrationData
from passes.decompose import DECOMPOSITIONS

STRATEGIES = ("hmc", "nahc", "ahc", "prune", "lowrank")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--targets", nargs="+", default=["macs=0.5", "macs=0.4", "latency=0.5"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--cp", nargs="+", choices=["with", "without"], default=["with", "without"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=8, help="that latency is planned for")
    parser.add_argument("--align", type=int, help="multiples of which ranks and numbers of channels are")
    parser.add_argument("--samples", type=int, help="images to calibrate with; default: 1024, with --quick 256")
    parser.add_argument("--test", type=int, help="images of the test split; default: all")
    parser.add_argument("--quick", action="store_true", help="as --quick of the command")
    parser.add_argument("--work-dir", type=Path, required=True)
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    test = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=args.test, split="test")
    for target in args.targets:
        hmc_onnx.parse_target(target)  # which raises for one that means nothing
    given = {"provider": "cpu"} | sampled(args)
    given |= {"batch": args.batch, "align": args.align, "precision": args.precision}
    rows = Rows(
        args.work_dir / f"rows-{args.precision}.json", {"model": args.model.name, "test": test.digest(), **given}
    )
    print(f"{args.model.name}: top-1 {accuracy(proto, test):.2f} % of {len(test)} images, {args.precision}", flush=True)
    results: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for cp, seed in itertools.product(args.cp, args.seeds):
        for timed in (False, True):
            bench = Bench(proto, test, args, given | {"seed": seed, "latency": timed}, cp)
            for target in (t for t in args.targets if ("latency" in t) is timed):
                for strategy in args.strategies:
                    name = f"{target}, {cp} CP, {strategy}, seed {seed}"
                    row = rows.get(name, lambda b=bench, t=target, s=strategy: b.row(t, s))
                    results.setdefault((cp, target, strategy), {})[seed] = row
                    print(f"{name}: {row.get('refused') or shown(row)}", flush=True)
    for cp in args.cp:
        print(f"\n{cp} CP:\n{summary(results, cp, args)}\n")
        for line in [*ahead(results, cp, args), *predicted(results, cp, args)]:
            print(line)


class Bench:
    """One seed, kind of target and set of decompositions; profiled when a row is asked for.

    Args:
        given: fields of `Settings`.
        cp: "with" or "without".
    """

    def __init__(
        self, proto: onnx.ModelProto, test: CalibrationData, args: argparse.Namespace, given: dict[str, Any], cp: str
    ) -> None:
        self.proto, self.test, self.args, self.given, self.cp = proto, test, args, given, cp
        self.run: hmc_onnx.Run | None = None

    def row(self, target: str, strategy: str) -> dict[str, Any]:
        """Top-1, shares of MACs and time, and for each layer D and what was done to it."""
        if self.run is None:
            self.run = self._run()
        profile = self.run.profile()
        try:
            plan = self.run.plan(target, strategy)
        except hmc_onnx.HmcError as e:
            return {"refused": str(e)}
        model = self.run.serve(self.run.apply(plan), plan)
        return {
            "top1": accuracy(model, self.test),
            "macs": plan.macs / profile.macs,
            "latency": plan.latency and plan.latency.measured,
            "layers": layers(profile, plan),
        }

    def _run(self) -> hmc_onnx.Run:
        everything = dict(DECOMPOSITIONS)
        if self.cp == "without":
            del DECOMPOSITIONS["cp"]  # so that the profile has what the front would have without it
        try:
            settings = hmc_onnx.Settings(**self.given)
            data = hmc_onnx.load_data(
                self.proto, self.args.data, preprocessing(self.args), samples=settings.samples, seed=settings.seed
            )
            kind = "latency" if settings.latency else "macs"
            folder = self.args.work_dir / f"{settings.precision}-{kind}-{self.cp}-cp-seed{settings.seed}"
            run = hmc_onnx.Run(self.proto, data, settings, hmc_onnx.Work(work_dir=folder))
            run.profile()
            return run
        finally:
            DECOMPOSITIONS.clear()  # so that they are in their order again
            DECOMPOSITIONS.update(everything)


def layers(profile: hmc_onnx.Profile, plan: hmc_onnx.Plan) -> list[list[float]]:
    """D and what was done (-1 pruned, 0 both, 1 decomposed) of each layer that is changed and could be either."""
    found = []
    for layer in profile.layers:
        own, groups = plan.layers[layer.name], (layer.input_group, layer.output_group)
        pruned, chained = any(g is not None and plan.groups[g].removed for g in groups), own.rank > 0
        if (pruned or chained) and own.difference is not None and abs(own.difference) < 1:
            found.append([own.difference, float(chained) - float(pruned)])
    return found


def shown(row: dict[str, Any]) -> str:
    """A result in words."""
    time = "" if row["latency"] is None else f", time {row['latency']:.3f}"
    return f"top-1 {row['top1']:.2f} %, MACs {row['macs']:.3f}{time}"


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


Results = dict[tuple[str, ...], dict[int, dict[str, Any]]]


def top1s(results: Results, cp: str, target: str, strategy: str) -> dict[int, float]:
    """Top-1 by seed, of the seeds whose target was met."""
    return {s: row["top1"] for s, row in results.get((cp, target, strategy), {}).items() if "top1" in row}


def summary(results: Results, cp: str, args: argparse.Namespace) -> str:
    """Top-1 by strategy and target."""
    lines = [[s, *(spread([*top1s(results, cp, t, s).values()]) for t in args.targets)] for s in args.strategies]
    return table([f"top-1, {args.precision}", *args.targets], lines)


def ahead(results: Results, cp: str, args: argparse.Namespace) -> list[str]:
    """A line for each single strategy that is ahead of `hmc`."""
    lines = []
    for target, strategy in itertools.product(args.targets, args.strategies):
        free, own = top1s(results, cp, target, "hmc"), top1s(results, cp, target, strategy)
        lead = [own[seed] - free[seed] for seed in sorted({*own} & {*free})]
        if lead and statistics.fmean(lead) > 0:
            lines.append(f"{target}: {strategy} is ahead of hmc by {spread(lead)} points ({len(lead)} seeds)")
    return lines or ["no strategy is ahead of hmc"] * ("hmc" in args.strategies)


def predicted(results: Results, cp: str, args: argparse.Namespace) -> list[str]:
    """A line for each target: the rank correlation of D with the choice, over the layers of all seeds."""
    lines = []
    for target in args.targets:
        pairs = [pair for row in results.get((cp, target, "hmc"), {}).values() for pair in row.get("layers", [])]
        if len(pairs) > 2 and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
            found = spearmanr(*np.array(pairs).T)
            said = f"rank correlation of D with the choice {found.statistic:.2f} (p = {found.pvalue:.1g})"
        else:
            said = "no rank correlation of D with the choice, as these layers were all treated alike"
        lines.append(f"{target}: {said}, {len(pairs)} layers of all seeds")
    return lines


if __name__ == "__main__":
    main()
