"""Seconds, peak memory and the share of the time reached by `hmc-onnx compress` on ResNet-50 at 224×224, by stage.

    python benchmarks/imagenet.py --images 256 --target latency=0.5 [--quick] [--precision int8]
    python benchmarks/imagenet.py --finetune 32

With `--finetune`: seconds and peak memory of `hmc-onnx finetune` of the whole network, for two steps of so many images,
with the looks at the images held back and the write-back.

The network has torchvision's topology and random weights, the images are noise. That hardly changes what the work costs
(sensitivities of a trained network may take more images), and the time that the file takes does not depend on its
values. Accuracy is measured elsewhere, on trained networks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from networks import bottlenecks
from rich.console import Console
from watching import GIGABYTE, Usage, table, watched

MOST = 20 * GIGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--target", default="latency=0.5")
    parser.add_argument("--batch", type=int, default=1, help="that latency is planned for")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work-dir", type=Path, help="as of the command")
    parser.add_argument("--finetune", type=int, metavar="BATCH_SIZE")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    if args.finetune:
        finetune(console, args.finetune)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(bottlenecks(3, 4, 6, 3), folder / "model.onnx")
        data = np.random.default_rng(0).standard_normal((args.images, 3, 224, 224), np.float32)
        np.savez(folder / "data.npz", input=data)
        del data
        command = [sys.executable, "-m", "hmc_onnx", "compress", str(folder / "model.onnx")]
        command += ["--output", str(folder / "smaller.onnx"), "--data", str(folder / "data.npz"), "--provider", "cpu"]
        command += ["--target", args.target, "--batch", str(args.batch)]
        command += ["--precision", args.precision, "--report", str(folder / "report.json")]
        command += ["--quick"] if args.quick else ["--samples", str(args.images)]
        command += ["--work-dir", str(args.work_dir)] if args.work_dir else []
        usage = finished(command, console, folder)
        report = json.loads((folder / "report.json").read_text())
    shown = table(f"compress {' '.join(command[10:])}", "stage", "seconds", "peak, GB", "anonymous, GB")
    for stage, used in [*usage.stages.items(), ("in all", usage.peak)]:
        peaks = (f"{used.peak / GIGABYTE:.2f}", f"{used.anonymous / GIGABYTE:.2f}")
        shown.add_row(stage, f"{used.seconds:.1f}", *peaks)
    console.print(shown)
    planned = report["plan"]["latency"]
    if planned is not None and planned["measured"] is not None:
        console.print(
            f"planned: {planned['expected']:.3f}, measured {planned['measured']:.3f} ± {planned['uncertainty']:.3f}"
        )
    for timing in report["timings"]:
        ratio = f"{timing['ratio']:.3f} ± {timing['uncertainty']:.3f}"
        console.print(f"batch {timing['batch']}: {timing['a']:.1f} ms, then {timing['b']:.1f} ms: {ratio}")
    console.print(f"MACs: {report['b']['macs'] / report['a']['macs']:.3f}")


def finetune(console: Console, batch_size: int) -> None:
    """Two steps of training."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(bottlenecks(3, 4, 6, 3), folder / "model.onnx")
        shape = (2 * batch_size + batch_size // 2, 224, 224, 3)
        np.savez(folder / "data.npz", images=np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        command = [sys.executable, "-m", "hmc_onnx", "finetune", str(folder / "model.onnx"), "--teacher"]
        command += [str(folder / "model.onnx"), "--output", str(folder / "tuned.onnx"), "--data"]
        command += [str(folder / "data.npz"), "--preset", "imagenet", "--epochs", "1", "--batch-size", str(batch_size)]
        usage = finished([*command, "--device", "cpu"], console, folder)
    peak = usage.peak.peak / GIGABYTE
    console.print(f"finetune, batches of {batch_size}: {usage.peak.seconds:.0f} s, {peak:.2f} GB at most")


def finished(command: list[str], console: Console, folder: Path) -> Usage:
    """What a command took; the benchmark ends with what it said if it failed, or held more than `MOST`."""
    usage = watched(command, MOST, folder)
    if usage.code != 0:
        console.print(f"it FAILED: {usage.said.strip()[-500:]}", markup=False)
        sys.exit(1)
    return usage


if __name__ == "__main__":
    main()
