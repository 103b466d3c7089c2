"""One table of what users may pick: the original, other tools, and this one, measured side by side in one run.

    benchmarks/peers/setup .venv-peers
    python benchmarks/peers.py resnet56-cifar10.onnx --data cifar10.npz --preset cifar10 --work-dir runs/peers56 \
        --peers .venv-peers/bin/python --macs 0.7 0.5 --latency 0.7 0.5 --int8 0.37 0.3 --plot docs/peers-resnet56.svg

The rows: the original; onnxruntime's quantiser alone; Torch-Pruning, by magnitude and by Taylor's criterion, and
onnxsim's structured Wanda pruning for each of `--macs`; ours in float32 for each of `--macs` and `--latency`, and in
INT8 for each of `--int8` (shares of the float32 original's time at `--batch`). All get the same calibration images and
no labels, and nobody trains. The other tools run in an environment of their own; where one fails on the network, a
sentence says how. "minutes" is what a user would wait for that one file: for ours with the profile, which all rows of
a kind share here.

Networks and rows are kept in the work folder, and a run that was cut off goes on; top-1, of all test images, and times
are measured at the end for all networks in turns. A time is the median over the turns of the ratio to the original's.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from testing import Rows, accuracy, arguments, preprocessing, sampled, table

import hmc_onnx
from calib.measure.latency import Timings, interleaved
from calib.runtime.batching import input_shapes, serving_feeds
from calib.runtime.sessions import CPU, Session
from hmc_onnx.comparison.verification import Network
from passes.core.atomic import replacing

HERE = Path(__file__).parent / "peers"
# Name of another tool: its script, and further arguments.
PEERS = {
    "Torch-Pruning, magnitude": ("with_torch_pruning.py", ["--importance", "magnitude"]),
    "Torch-Pruning, Taylor": ("with_torch_pruning.py", ["--importance", "taylor"]),
    "onnxsim, structured Wanda": ("with_onnxsim.py", []),
}
# Rounds over all batch sizes: what else a machine does comes in spells.
ROUNDS = 3
# Seconds after which another tool is ended.
PATIENCE = 3600


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--peers", type=Path, help="python of the environment that benchmarks/peers/setup makes")
    parser.add_argument("--macs", type=float, nargs="*", default=[0.7, 0.5])
    parser.add_argument("--latency", type=float, nargs="*", default=[0.7, 0.5])
    parser.add_argument("--int8", type=float, nargs="*", default=[0.37, 0.3])
    parser.add_argument("--batch", type=int, default=8, help="that latency is planned for")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="that are timed")
    parser.add_argument("--samples", type=int, help="images that all tools get; default: 1024, with --quick 256")
    parser.add_argument("--test", type=int, help="images of the test split; default: all")
    parser.add_argument("--quick", action="store_true", help="as --quick of the command, for ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="picture of top-1 over time at the last of --batches, SVG or PNG")
    parser.add_argument("--work-dir", type=Path, required=True)
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    made = Made(proto, args)
    entries = [Entry("original", "", proto), made.ours("int8", "none", "onnxruntime's INT8 alone")]
    for name in PEERS if args.peers else []:
        entries += [made.theirs(name, share) for share in args.macs]
    for goal, shares in (("macs", args.macs), ("latency", args.latency)):
        entries += [made.ours("fp32", f"{goal}={share:g}", "ours, float32") for share in shares]
    entries += [made.ours("int8", f"latency={share:g}", "ours, INT8") for share in args.int8]
    compared(entries, made, args)


class Entry:
    """A row: a tool, what was asked of it, the network or why there is none, and the minutes of work."""

    def __init__(
        self, tool: str, asked: str, model: onnx.ModelProto | None, minutes: float | None = None, why: str = ""
    ) -> None:
        self.tool, self.asked, self.model, self.minutes, self.why = tool, asked, model, minutes, why
        self.top1, self.macs, self.times = float("nan"), float("nan"), dict[int, float]()


class Made:
    """The networks, each made unless it is in the work folder."""

    def __init__(self, proto: onnx.ModelProto, args: argparse.Namespace) -> None:
        self.proto, self.args = proto, args
        self.given = sampled(args) | {"seed": args.seed, "batch": args.batch, "provider": "cpu"}
        self.preprocess = preprocessing(args)
        self.images = hmc_onnx.load_data(
            proto, args.data, self.preprocess, samples=self.given["samples"], seed=args.seed
        )
        self.folder: Path = args.work_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = Rows(
            self.folder / "made.json", {"model": args.model.name, "images": self.images.digest(), **self.given}
        )
        self._runs: dict[tuple[str, bool], hmc_onnx.Run] = {}

    def theirs(self, tool: str, share: float) -> Entry:
        """A network of another tool, made by a process of its own."""
        script, options = PEERS[tool]
        images, path = self.folder / "images.npz", self.folder / f"{tool.replace(', ', '-')}-{share:g}.onnx"
        if not images.exists():
            with replacing(images) as temporary, temporary.open("wb") as file:
                np.savez(file, **self.images.feeds)

        def make() -> tuple[str, str]:
            command = [self.args.peers, HERE / script, self.args.model, images, str(share), path, *options]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
            except subprocess.TimeoutExpired:
                return f"not done after {PATIENCE // 60} minutes", ""
            failed = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            return failed if done.returncode else "", done.stdout.strip()

        return self._entry(tool, f"macs={share:g}", path, make)

    def ours(self, precision: str, target: str, tool: str) -> Entry:
        """A network of ours; the minutes are with those of its profile."""
        run = self._run(precision, "latency" in target)
        path = self.folder / f"ours-{precision}-{target}.onnx"

        def make() -> tuple[str, str]:
            try:
                plan = run.plan(target)
                hmc_onnx.save(run.serve(run.apply(plan), plan), path)
            except hmc_onnx.HmcError as e:
                return str(e), ""
            return "", ""

        profiled = 0.0 if target == "none" else self._profiled(precision, "latency" in target)
        entry = self._entry(tool, "" if target == "none" else target, path, make)
        entry.minutes = (entry.minutes or 0.0) + profiled
        return entry

    def _run(self, precision: str, timed: bool) -> hmc_onnx.Run:
        if (precision, timed) not in self._runs:
            settings = hmc_onnx.Settings(**self.given, precision=precision, latency=timed)
            work = hmc_onnx.Work(work_dir=self.folder / f"run-{precision}-{'latency' if timed else 'macs'}")
            self._runs[precision, timed] = hmc_onnx.Run(self.proto, self.images, settings, work)
        return self._runs[precision, timed]

    def _profiled(self, precision: str, timed: bool) -> float:
        """Minutes of a profile, which is measured when it is first asked for."""

        def make() -> float:
            start = time.perf_counter()
            self._run(precision, timed).profile()
            return (time.perf_counter() - start) / 60

        return self.rows.get(f"profile {precision} {'latency' if timed else 'macs'}", make)

    def _entry(self, tool: str, asked: str, path: Path, make: Callable[[], tuple[str, str]]) -> Entry:
        def row() -> dict[str, Any]:
            start = time.perf_counter()
            why, said = make()
            return {"minutes": (time.perf_counter() - start) / 60, "why": why, "said": said}

        found = self.rows.get(path.stem, row)
        model = None if found["why"] else hmc_onnx.load(path)
        said = found["why"] or found["said"] or "made"
        print(f"{tool} {asked}: {said} ({found['minutes']:.1f} min)", flush=True)
        return Entry(tool, asked, model, found["minutes"], found["why"])


def compared(entries: list[Entry], made: Made, args: argparse.Namespace) -> None:
    """Measure all networks, and print and plot what was found."""
    test = hmc_onnx.load_data(made.proto, args.data, made.preprocess, samples=args.test, split="test")
    running, shapes = [e for e in entries if e.model is not None], input_shapes(made.proto, made.images)
    whole = Network(made.proto).side(shapes, None, CPU).macs
    for entry in running:
        assert entry.model is not None
        entry.top1 = accuracy(entry.model, test)
        entry.macs = Network(entry.model).side(shapes, None, CPU).macs / whole
    sessions = [Session(entry.model) for entry in running]
    for batch in args.batches:
        feeds = serving_feeds(made.images, batch)
        seconds = Timings(np.concatenate([interleaved(sessions, feeds).seconds for _ in range(ROUNDS)])).seconds
        print(f"batch {batch}: the original takes {1e3 * np.median(seconds[:, 0]):.2f} ms, {len(seconds)} turns")
        for i, entry in enumerate(running):
            entry.times[batch] = float(np.median(seconds[:, i] / seconds[:, 0]))
    header = ["tool", "asked", "top-1", "MACs", *(f"time, batch {b}" for b in args.batches), "minutes"]
    print("\n" + table(header, [line(entry, args.batches) for entry in entries]))
    for entry in entries:
        if entry.why:
            print(f"\n{entry.tool}, {entry.asked}: {entry.why}")
    if args.plot:
        plot(running, args.batches[-1], f"{args.model.stem}: {len(test)} test images", args.plot)


def line(entry: Entry, batches: list[int]) -> list[str]:
    """A row of the table."""
    minutes = "" if entry.minutes is None else f"{entry.minutes:.1f}"
    if entry.model is None:
        return [entry.tool, entry.asked, "see below", *[""] * (1 + len(batches)), minutes]
    times = [f"{entry.times[b]:.3f}" for b in batches]
    return [entry.tool, entry.asked, f"{entry.top1:.2f}", f"{entry.macs:.3f}", *times, minutes]


def plot(entries: list[Entry], batch: int, title: str, path: Path) -> None:
    """Top-1 over time, a line for each tool."""
    import matplotlib  # noqa: PLC0415 - it is needed for this alone

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(7, 4.5), facecolor="white")
    for tool, marker in zip(dict.fromkeys(e.tool for e in entries), "*sv^<oDPX", strict=False):
        own = sorted((e.times[batch], e.top1) for e in entries if e.tool == tool)
        axes.plot(*zip(*own, strict=True), marker=marker, label=tool, linewidth=1, markersize=8)
    axes.set(xlabel=f"time of a run of {batch} images, share of the original's", ylabel="top-1, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
