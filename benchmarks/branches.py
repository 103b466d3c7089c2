"""Residual branches that are removed: what is lost by measure, after the repair, and by how many of them.

    python benchmarks/branches.py resnet56-cifar10.onnx --data cifar10.npz --target latency=0.37 --precision int8 \
        --quick

The first table has every `--every`-th branch that may be removed: what is lost when that branch alone is replaced by
its mean; when the next layers behind it are repaired, which is its sensitivity in the profile
(`hmc_onnx/planning/repaired_branches.py`); and when all layers behind it are. Below it is the correlation of each stage
(`hmc_onnx/planning/joint_loss.py`). The other tables have the plans with each number of branches, without correction of
their time, by three profiles: with no branch repaired; with each repaired, and their sensitivities added; and with what
those of a stage lose together. Their columns are what the profile has the plan lose ("sum"), what of it is of channels
and of decompositions, their trial (`hmc_onnx/planning/trial.py`; at a higher temperature, so on another scale), and
what they lose after the repair. Divergences are means over `--others` training images that nothing was fitted to; those
of the first table and "warm" are at the temperature of sensitivities, and the last is that of the plain scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from scipy.stats import spearmanr
from testing import arguments, outputs, preprocessing, sampled, table

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure.divergence import divergences, temperature
from hmc_onnx.planning.program import Program
from hmc_onnx.planning.repaired_branches import without_branches
from hmc_onnx.planning.trial import Trial
from hmc_onnx.planning.trials import same_changes
from hmc_onnx.profiling.profiler import profile


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
    unrepaired = profile(run, run.clock)
    alone(run, unrepaired, loss, args.every)
    together(run, unrepaired, loss, args)


def lost(reference: list[np.ndarray], images: CalibrationData, model: onnx.ModelProto, warm: bool) -> float:
    """Mean divergence of a model's scores from the original's, in nats, at the temperature of sensitivities or at 1.

    `reference` is what the original answers to the images.
    """
    heat = temperature(reference) if warm else 1.0
    return float(divergences([reference], [outputs(model, images)], temperature=heat).mean())


def alone(run: hmc_onnx.Run, unrepaired: hmc_onnx.Profile, lost: partial[float], every: int) -> None:
    """The first table, and how far the first columns are from the last, as factors."""
    lines, found = [], []
    pairs = zip(unrepaired.groups, run.profile().groups, strict=True)
    for before, after in [pair for pair in pairs if pair[0].choices[-1].removes_branch][::every]:
        left = lost(run.apply(without_branches(run, unrepaired, [before])), True)
        found.append([before.choices[-1].sensitivity, after.choices[-1].sensitivity, left])
        lines.append([before.name, *(f"{value:.4f}" for value in found[-1])])
        print(" ".join(lines[-1]), flush=True)
    print("\n" + table(["branch of", "none repaired", "next repaired", "all repaired"], lines))
    logs = np.log(found)
    for name, values in zip(("none", "next"), logs.T[:2], strict=True):
        off = values - logs[:, 2]
        times, spread = np.exp([off.mean(), off.std()])
        print(f"{name} repaired: {times:.1f} times what is left, and a spread of these by a factor of {spread:.1f}")


def together(run: hmc_onnx.Run, unrepaired: hmc_onnx.Profile, lost: partial[float], args: argparse.Namespace) -> None:
    """The other tables, and how well the sum and the trial tell the order of what is lost."""
    repaired, trial = run.profile(), Trial(run)
    sizes = {group.name: group.size for group in repaired.groups}
    for stage in repaired.stages:
        size = sizes[stage.branches[0]]
        print(f"{len(stage.branches)} branches of {size} channels: correlation {stage.correlation:.2f}")
    known: list[tuple[hmc_onnx.Plan, list[float]]] = []

    def losses(plan: hmc_onnx.Plan) -> list[float]:
        for other, values in known:
            if same_changes(plan, other):
                return values
        model = run.apply(plan)
        known.append((plan, [float(trial.losses(plan).mean()), lost(model, True), lost(model, False)]))
        return known[-1][1]

    alone = repaired.model_copy(update={"stages": []})
    for title, own in (("no branch repaired", unrepaired), ("repaired, added", alone), ("together", repaired)):
        print(f"\n{title}:")
        of_one(Program(own), losses, args)


def of_one(program: Program, losses: Callable[[hmc_onnx.Plan], list[float]], args: argparse.Namespace) -> None:
    """The table of one profile."""
    found, lines = [], []
    for count in range(args.most + 1):
        try:
            plan = program.solve(hmc_onnx.parse_target(args.target), branches=count)
        except hmc_onnx.HmcError:
            lines.append([str(count), *["–"] * 6])
            continue
        found.append([plan.sensitivity, *losses(plan)])
        channels = sum(g.sensitivity for g in plan.groups.values() if not g.removes_branch)
        parts = [found[-1][0], channels, sum(own.sensitivity for own in plan.layers.values()), *found[-1][1:]]
        lines.append([str(count), *(f"{value:.4f}" for value in parts)])
        print(" ".join(lines[-1]), flush=True)
    heads = ["branches", "sum", "channels", "decompositions", "trial", "repaired, warm", "repaired"]
    print("\n" + table(heads, lines))
    if len(found) < 3:
        return  # too few for an order
    of_sum, of_trial, *_, last = np.array(found).T
    for name, values in (("sum", of_sum), ("trial", of_trial)):
        print(f"rank correlation of the {name} with what is lost: {spearmanr(values, last).statistic:.2f}")


if __name__ == "__main__":
    main()
