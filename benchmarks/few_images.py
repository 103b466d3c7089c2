"""What the report says of a network compressed with few images, beside what fresh images say of it.

    python benchmarks/few_images.py MODEL.onnx --data cifar10.npz --preset cifar10 --work-dir runs

For each number of images: a user has no more than these and gives no others to test with, so a part is held back from
all fitting where there are enough. The report is of the images that were held back, or else of the fitted ones, of
which it says that they tell nothing about new images ("fitted" in the table). Fresh images are drawn from the test
split. A network is more certain of images that it was trained on than of new ones, so with the training split the
report is better than the truth; with `--unseen` the user's images are of the test split, too, and none of them is a
fresh one. "Unrepaired" is the KL, on the fresh images, of the same plan without repair: the layers that are left keep
their weights and biases. The last three columns say of all three figures whether those of the fresh images lie within
the report's 95 % intervals ("holds"), whether the report's figures lie within the intervals of the fresh images
("within": this asks more than few images can know, as one of 25 is 4 %), and whether the two intervals have something
in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_graphsurgeon as gs
from testing import Rows, arguments, preprocessing, table

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.comparison.verification import Network, verify
from hmc_onnx.records.settings import QUICK
from hmc_onnx.rewriting import applying
from hmc_onnx.rewriting.fitting import Fit

MEASURES = ("agreement", "kl", "change")
HEADER = [
    "images", "seed", "report of", "same class, %", "fresh", "KL, nats", "fresh", "unrepaired",
    "top-1 change, points", "fresh", "holds", "within", "overlap",
]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[8 * 2**i for i in range(8)])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--fresh", type=int, default=1000, help="images of the test split")
    parser.add_argument("--unseen", action="store_true", help="the user's images are none that the network has seen")
    parser.add_argument("--quick", action="store_true", help="as --quick of the command")
    parser.add_argument("--work-dir", type=Path, help="finished rows are kept here")
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    every = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=None, split="test")
    fresh, others = every.split(args.fresh)
    identity = {"model": args.model.name, "target": args.target, "fresh": fresh.digest(), "quick": args.quick}
    identity["unseen"] = args.unseen
    rows = Rows(args.work_dir and args.work_dir / "few_images.json", identity)
    lines, new, better = [], [], 0
    for seed in args.seeds:
        for count in args.images:
            if args.unseen:
                images = others.draw(count, seed)
            else:
                images = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=count, seed=seed)
            settings = hmc_onnx.Settings(**(QUICK if args.quick else {}), seed=seed)
            run = hmc_onnx.Run(proto, images, settings, purpose="report")  # as `hmc_onnx.compress` makes it
            row = rows.get(f"{count} images, seed {seed}", lambda r=run: compared(r, fresh, args.target))
            row |= {"images": count, "seed": seed}
            lines.append(line(row))
            better += row["fresh"]["kl"][0] < row["unrepaired"]["kl"][0]
            new += [lines[-1]] if row["held"] else []
            print(" | ".join(lines[-1]), flush=True)
    print("\n" + table(HEADER, lines))
    held, inside, common = (sum(own[i] == "yes" for own in new) for i in (-3, -2, -1))
    print(
        f"\n{len(new)} reports are of new images; of {held} the intervals hold the fresh figures, {inside} lie within "
        f"the fresh intervals, {common} overlap with them. "
        f"Repair lowers the KL of fresh images in {better} of {len(lines)} rows."
    )


def compared(run: hmc_onnx.Run, fresh: CalibrationData, target: str) -> dict[str, Any]:
    """What the report says, and what fresh images say, of a network that a run compresses."""
    plan = run.plan(target)
    repaired = run.apply(plan)
    report = run.verify(repaired)
    with unrepaired():
        bare = run.apply(plan)
    after, without = (verify(Network(run.served), Network(model), fresh, batches=()) for model in (repaired, bare))
    return {
        "held": report.images if report.new_images else 0,
        "report": figures(report),
        "fresh": figures(after),
        "unrepaired": figures(without),
    }


@contextmanager
def unrepaired() -> Iterator[None]:
    """Plans are carried out without repair, for networks whose layers share no weights."""
    chain = applying.replace_by_chain

    def with_own_bias(graph: gs.Graph, node: gs.Node, links: Sequence[Any], bias: np.ndarray, also: Any = ()) -> None:
        chain(graph, node, links, node.inputs[2].values if len(node.inputs) > 2 else np.zeros_like(bias), also)

    with (
        mock.patch.object(Fit, "weight", lambda self, own: own),
        mock.patch.object(applying, "write_layer", return_value=None),
        mock.patch.object(applying, "replace_by_chain", with_own_bias),
    ):
        yield


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
    holds = all(low <= value <= high for (_, low, high), (value, *_) in known)
    within = all(low <= value <= high for (value, *_), (_, low, high) in known)
    overlap = all(a[1] <= b[2] and b[1] <= a[2] for a, b in known)
    cells = [text(side, 3 if name == "kl" else 1) for name, pair in pairs.items() for side in pair]
    cells.insert(4, text(row["unrepaired"]["kl"], 3))
    of = f"{row['held']} held back" if row["held"] else "fitted"
    return [str(row["images"]), str(row["seed"]), of, *cells, *("yes" if x else "no" for x in (holds, within, overlap))]


def text(figure: list[float] | None, digits: int) -> str:
    """A value with its interval."""
    if figure is None:
        return "–"
    value, low, high = (f"{x:.{digits}f}" for x in figure)
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
