"""Residual branches that are removed: what is lost by measure, after the repair, and by how many of them.

    python benchmarks/branches.py resnet56-cifar10.onnx --data cifar10.npz --target latency=0.37 --precision int8 \
        --quick

The first table has every `--every`-th branch that may be removed: its sensitivity as the profile has it, measured with
nothing repaired, and what is left of it when that branch alone is removed and the layers behind it are repaired. The
second has the plans with each number of branches and each factor on the sensitivities of other removed channels, by the
same profile and without correction of their time: the sum of their sensitivities, what of it is of channels and of
decompositions, their trial (`hmc_onnx/planning/trial.py`; at a higher temperature, so on another scale), and what they
lose after the repair. Divergences are means over `--others` training images that nothing was fitted to; those of
the first table and "warm" are at the temperature of sensitivities, and the last is that of the plain scores.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial

import numpy as np
import onnx
from scipy.stats import spearmanr
from testing import arguments, outputs, preprocessing, sampled, table

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.divergence import divergences, temperature
from hmc_onnx.planning.program import Program
from hmc_onnx.planning.trial import Trial
from hmc_onnx.planning.trials import PRUNING, same_changes


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--target", default="latency=0.5")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--most", type=int, default=6, help="branches that are removed together")
    parser.add_argument("--every", type=int, default=3, help="of the branches that are removed alone")
    parser.add_argument("--others", type=int, default=4000, help="further training images to compare on")
    parser.add_argument("--batch", type=int, default=8, help="that latency is planned for")
    parser.add_argument("--samples", type=int, help="images to calibrate with; default: 1024, with --quick 256")
    parser.add_argument("--quick", action="store_true", help="as --quick of the command")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    given = sampled(args) | {"seed": args.seed, "batch": args.batch, "precision": args.precision}
    settings = hmc_onnx.Settings(provider="cpu", latency=True, **given)
    count = settings.samples + args.others
    data = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=count, seed=args.seed)
    calibration, others = data.part(settings.samples)
    run = hmc_onnx.Run(proto, calibration, settings)
    loss = partial(lost, outputs(proto, others), others)
    alone(run, loss, args)
    together(run, loss, args)


def lost(reference: list[np.ndarray], images: CalibrationData, model: onnx.ModelProto, warm: bool) -> float:
    """Mean divergence of a model's scores from the original's, in nats, at the temperature of sensitivities or at 1.

    `reference` is what the original answers to the images.
    """
    heat = temperature(reference) if warm else 1.0
    return float(divergences([reference], [outputs(model, images)], temperature=heat).mean())


def alone(run: hmc_onnx.Run, lost: partial[float], args: argparse.Namespace) -> None:
    """The first table."""
    lines = []
    program = Program(run.profile())
    measured = program.loss
    for at in np.flatnonzero(program.removes)[:: args.every]:
        program.loss = measured + 1e3 * program.removes  # so that no other is removed in its place
        program.loss[at] = measured[at]
        plan = program.solve(hmc_onnx.parse_target("macs=1"), branches=1)
        left = lost(run.apply(plan), True)
        lines.append(
            [program.groups[at][0].name, f"{plan.sensitivity:.4f}", f"{left:.4f}", f"{left / plan.sensitivity:.2f}"]
        )
        print(" ".join(lines[-1]), flush=True)
    print("\n" + table(["branch of", "measured", "repaired", "share"], lines), flush=True)


def together(run: hmc_onnx.Run, lost: partial[float], args: argparse.Namespace) -> None:
    """The second table, and how well the sum and the trial tell the order of what is lost."""
    program, trial = Program(run.profile()), Trial(run)
    found, lines, plans = [], [], []
    for count, pruning in itertools.product(range(args.most + 1), PRUNING):
        where = [str(count), f"{pruning:g}"]
        try:
            plan = program.solve(hmc_onnx.parse_target(args.target), branches=count, pruning=pruning)
        except hmc_onnx.HmcError:
            lines.append([*where, "–", "–", "–", "–", "–", "–"])
            continue
        if any(same_changes(plan, other) for other in plans):
            lines.append([*where, "as above", "", "", "", "", ""])
            continue
        plans.append(plan)
        model = run.apply(plan)
        found.append([plan.sensitivity, trial.losses(plan).mean(), lost(model, True), lost(model, False)])
        channels = sum(g.sensitivity for g in plan.groups.values() if not g.removes_branch)
        parts = [found[-1][0], channels, sum(own.sensitivity for own in plan.layers.values()), *found[-1][1:]]
        lines.append([*where, *(f"{value:.4f}" for value in parts)])
        print(" ".join(lines[-1]), flush=True)
    heads = ["branches", "factor", "sum", "channels", "decompositions", "trial", "repaired, warm", "repaired"]
    print("\n" + table(heads, lines))
    if len(found) < 3:
        return  # too few for an order
    of_sum, of_trial, *_, last = np.array(found).T
    for name, values in (("sum", of_sum), ("trial", of_trial)):
        print(f"rank correlation of the {name} with what is lost: {spearmanr(values, last).statistic:.2f}")


if __name__ == "__main__":
    main()
