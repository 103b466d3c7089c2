"""What the report says of a network compressed with few images, beside what fresh images say of it.

    python benchmarks/few_images.py MODEL.onnx --data cifar10.npz --preset cifar10 --work-dir runs

For each number of images: a user has no more than these and gives no others to test with, so a part is held back from
all fitting where there are enough. The report is of the images that were held back, or else of the fitted ones, of
which it says that they tell nothing about new images ("fitted" in the table). Fresh images are drawn from the test
split. The last two columns say whether the report's three figures lie within the 95 % intervals of the fresh images,
and whether the report's own intervals and those have something in common: the first asks more, as the images held back
are a sample, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx
from testing import Rows, arguments, preprocessing, table

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.comparison.verification import Network, verify
from hmc_onnx.records.settings import QUICK

MEASURES = ("agreement", "kl", "change")
HEADER = [
    "images", "seed", "report of", "same class, %", "fresh", "KL, nats", "fresh", "top-1 change, points", "fresh",
    "within", "overlap",
]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[8 * 2**i for i in range(8)])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--fresh", type=int, default=1000, help="images of the test split")
    parser.add_argument("--quick", action="store_true", help="as --quick of the command")
    parser.add_argument("--work-dir", type=Path, help="finished rows are kept here")
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    fresh = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=args.fresh, split="test")
    identity = {"model": args.model.name, "target": args.target, "fresh": fresh.digest(), "quick": args.quick}
    rows = Rows(args.work_dir and args.work_dir / "few_images.json", identity)
    lines, new = [], []
    for seed in args.seeds:
        for count in args.images:
            row = rows.get(f"{count} images, seed {seed}", lambda n=count, s=seed: compared(proto, fresh, n, s, args))
            lines.append(line(row))
            new += [lines[-1]] if row["held"] else []
            print(" | ".join(lines[-1]), flush=True)
    print("\n" + table(HEADER, lines))
    inside, common = (sum(own[i] == "yes" for own in new) for i in (-2, -1))
    print(
        f"\n{len(new)} reports are of new images; {inside} lie within the fresh intervals, {common} overlap with them"
    )


def compared(
    proto: onnx.ModelProto, fresh: CalibrationData, count: int, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """What the report says, and what fresh images say, of a network compressed with `count` images."""
    images = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=count, seed=seed)
    settings = hmc_onnx.Settings(**(QUICK if args.quick else {}), seed=seed)
    result = hmc_onnx.compress(proto, images, args.target, settings=settings)
    after = verify(Network(proto), Network(result.model), fresh, batches=())
    held = result.report.images if result.report.new_images else 0
    return {"images": count, "seed": seed, "held": held, "report": figures(result.report), "fresh": figures(after)}


def figures(report: hmc_onnx.Verification) -> dict[str, list[float] | None]:
    """Of each measure: value, and the ends of its 95 % interval; None where there are no labels."""
    found, assured = report.intervals, report.a.top1 is not None and report.b.top1 is not None
    assert found is not None and found.agreement is not None and report.agreement is not None
    change = found.change if assured else None
    return {
        "agreement": [100 * x for x in (report.agreement, found.agreement.low, found.agreement.high)],
        "kl": [report.kl, found.kl.low, found.kl.high],
        "change": change and [100 * x for x in (report.b.top1 - report.a.top1, change.low, change.high)],
    }


def line(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    pairs = {name: (row["report"][name], row["fresh"][name]) for name in MEASURES}
    known = [pair for pair in pairs.values() if None not in pair]
    within = all(low <= value <= high for (value, *_), (_, low, high) in known)
    overlap = all(a[1] <= b[2] and b[1] <= a[2] for a, b in known)
    cells = [text(side, 3 if name == "kl" else 1) for name, pair in pairs.items() for side in pair]
    of = f"{row['held']} held back" if row["held"] else "fitted"
    return [str(row["images"]), str(row["seed"]), of, *cells, *("yes" if x else "no" for x in (within, overlap))]


def text(figure: list[float] | None, digits: int) -> str:
    """A value with its interval."""
    if figure is None:
        return "–"
    value, low, high = (f"{x:.{digits}f}" for x in figure)
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
