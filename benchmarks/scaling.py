"""Time and memory by the size of the model, on networks with random weights; no data is needed.

    python benchmarks/scaling.py [analysis] [inspect] [memory] [memory-compress]

Prints, by part:

- `analysis`: seconds of normalising a residual network, finding what can be compressed in it and tracing its channels,
  by number of blocks, and the exponents of the power laws fitted to them: 1 is linear.
- `inspect`: seconds of the command `hmc-onnx inspect` on a ResNet-152, the start of Python included.
- `memory`: peak memory of `hmc-onnx inspect` on a model of 2.2 GB, and its ratio to the size of the file.
- `memory-compress`: seconds and peak memory of `hmc-onnx compress`, worker processes included, by stage. It takes long
  and much memory: it runs only when asked for, and is stopped where it would hold more than `--most`. A stage begins
  where the command first tells of it, which for work in worker processes is at the first result.

Of a large model with all its candidates that is hours; `--few` leaves one number of channels for each group, and no
decompositions, which changes how long it takes, and hardly what is held.

The model of the memory parts is of `--gigabytes` and, by `--weights`, has them in 1×1 Convs of `--channels`, all of
which can be compressed, or in two Gemms behind a few small blocks, which are too wide to be.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from networks import Network, bottlenecks, residual_network, residual_trunk
from rich.console import Console
from watching import GIGABYTE, Stage, Usage, table, watched

from hmc_onnx.analysis.find_compressible import find_compressible
from passes.channels import trace
from passes.normal_form.normalise import normalise

PARTS = ("analysis", "inspect", "memory", "memory-compress")
BLOCKS = (10, 20, 40, 80, 160)
# The small blocks in front of the wide Gemm; of few channels, as those of 3×3 Convs take long to decompose.
SMALL_BLOCKS, SMALL_CHANNELS = 6, 24
GEMMS = 2  # side by side, as one would be a tensor of more than 2 GiB, which protobuf refuses
# The command line with few candidates.
FEW = """
from hmc_onnx.search_space import candidates, elimination, variants
from hmc_onnx.search_space import pruning_steps as cells
from hmc_onnx.cli import main
cells.SHARES, candidates.RATIOS, variants.RATIOS_WHEN_PRUNED = (0.9375,), (), ()
elimination.LOTS = 16
main()
"""
# Height and width of the input of the models whose memory is measured, by where they have their weights.
SIZES = {"convs": 4, "gemm": 24}


def analysis(console: Console) -> None:
    inputs: dict[str, tuple[int, ...]] = {"input": (1, 3, 32, 32)}
    steps: dict[str, list[float]] = {"normalise": [], "find_compressible": [], "trace": [], "in all": []}
    shown = table("Analysis, seconds (median of 3)", "blocks", "nodes", *steps)
    for blocks in BLOCKS:
        proto = residual_network(Network(32), blocks, 64, 3)
        runs = []
        for _ in range(4):  # the first warms up
            start = time.perf_counter()
            model = normalise(proto)
            normalised = time.perf_counter()
            find_compressible(model, inputs)
            found = time.perf_counter()
            trace(model, inputs)
            end = time.perf_counter()
            runs.append((normalised - start, found - normalised, end - found, end - start))
        for seconds, step in zip(np.median(runs[1:], axis=0), steps.values(), strict=True):
            step.append(float(seconds))
        shown.add_row(str(blocks), str(len(proto.graph.node)), *(f"{step[-1]:.3f}" for step in steps.values()))
    for name, last in (("all sizes", len(BLOCKS)), ("last three", 3)):
        exponents = (np.polyfit(np.log(BLOCKS[-last:]), np.log(step[-last:]), 1)[0] for step in steps.values())
        shown.add_row(f"exponent, {name}", "", *(f"{exponent:.2f}" for exponent in exponents))
    console.print(shown)


def inspect(console: Console) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "resnet152.onnx"
        onnx.save(bottlenecks(3, 8, 36, 3), path)
        command = [sys.executable, "-m", "hmc_onnx", "inspect", str(path)]
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            runs.append(time.perf_counter() - start)
    seconds = statistics.median(runs)
    spread = f"{min(runs):.2f} to {max(runs):.2f}"
    verdict = "under" if seconds < 5 else "NOT under"
    console.print(f"hmc-onnx inspect on ResNet-152: {seconds:.2f} s (median of 3, {spread}), {verdict} 5 s")


def large_model(args: argparse.Namespace, folder: Path) -> tuple[Path, int]:
    """The file, and the bytes of it and its weights; of either kind, it has little to compute."""
    path = folder / "large.onnx"
    with (folder / "large.onnx.data").open("wb") as data:
        network = Network(SIZES[args.weights], data)
        if args.weights == "convs":
            blocks = max(1, round(args.gigabytes * GIGABYTE / (2 * 4 * args.channels**2)))
            proto = residual_network(network, blocks, args.channels, 1)
        else:
            features = SMALL_CHANNELS * network.size**2
            x = residual_trunk(network, SMALL_BLOCKS, SMALL_CHANNELS, 3)
            hidden = round(args.gigabytes * GIGABYTE / (4 * features) / GEMMS)
            x = network.node("Flatten", x, axis=1)
            halves = [network.node("Relu", network.gemm(x, features, hidden)) for _ in range(GEMMS)]
            proto = network.model(network.gemm(network.node("Add", *halves), hidden, 10), 10)
        onnx.save(proto, path)
    return path, path.stat().st_size + Path(data.name).stat().st_size


def memory(args: argparse.Namespace, console: Console) -> None:
    shown = table("Memory", "command", "model, GB", "seconds", "peak, GB", "anonymous, GB", "peak / model")
    with TemporaryDirectory() as name:
        path, size = large_model(args, Path(name))
        usage = watched([sys.executable, "-m", "hmc_onnx", "inspect", str(path)], args.most * GIGABYTE, Path(name))
    shown.add_row("inspect", f"{size / GIGABYTE:.2f}", *figures(usage.peak, size))
    console.print(shown)
    explain(console, usage, args.most)


def memory_compress(args: argparse.Namespace, console: Console) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        path, size = large_model(args, folder)
        data = folder / "calibration.npz"
        shape = (8, 3, SIZES[args.weights], SIZES[args.weights])
        np.savez(data, input=np.random.default_rng(1).standard_normal(shape, np.float32))
        start = ["-c", FEW] if args.few else ["-m", "hmc_onnx"]
        command = [sys.executable, *start, "compress", str(path), "--output", str(folder / "smaller.onnx")]
        command += ["--data", str(data), "--target", args.target, "--samples", "8", "--provider", "cpu"]
        usage = watched(command, args.most * GIGABYTE, folder)
    title = f"compress --target {args.target}, a model of {size / GIGABYTE:.2f} GB, weights in {args.weights}"
    shown = table(title, "stage", "seconds", "peak, GB", "anonymous, GB", "peak / model")
    for stage, used in [*usage.stages.items(), ("in all", usage.peak)]:
        shown.add_row(stage, *figures(used, size))
    console.print(shown)
    explain(console, usage, args.most)


def figures(used: Stage, size: int) -> list[str]:
    peak, anonymous = used.peak / GIGABYTE, used.anonymous / GIGABYTE
    return [f"{used.seconds:.1f}", f"{peak:.2f}", f"{anonymous:.2f}", f"{used.peak / size:.1f}"]


def explain(console: Console, usage: Usage, most: float) -> None:
    """Say what the figures do not: that a command was stopped, or failed."""
    if usage.code is None:
        console.print(f"stopped, as it held more than {most:g} GB: see --most")
    elif usage.code:
        console.print(f"it FAILED with exit status {usage.code}: {usage.said.strip()}", markup=False)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all but the last if not given")
    parser.add_argument("--gigabytes", type=float, default=2.2, help="size of the model whose memory is measured")
    parser.add_argument("--weights", choices=list(SIZES), default="convs", help="where it has its weights")
    parser.add_argument("--channels", type=int, default=2048, help="inputs and outputs of each of its Convs")
    parser.add_argument("--most", type=float, default=16, help="gigabytes of memory above which a command is stopped")
    parser.add_argument("--target", default="macs=0.95", help="of memory-compress")
    parser.add_argument("--few", action="store_true", help="candidates only, for memory-compress to end soon")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):  # argparse's choices refuse an empty list
        parser.error(f"no such part: {', '.join(sorted(unknown))}: use {', '.join(PARTS)}")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a command that is watched goes, too
    console = Console(width=None if sys.stdout.isatty() else 120)
    run: dict[str, Callable[[], None]] = {
        "analysis": lambda: analysis(console),
        "inspect": lambda: inspect(console),
        "memory": lambda: memory(args, console),
        "memory-compress": lambda: memory_compress(args, console),
    }
    for part in args.parts or PARTS[:-1]:
        run[part]()


if __name__ == "__main__":
    main()
