"""Seconds and peak memory of a whole `hmc-onnx compress` against the work: deeper networks, and more images.

    python benchmarks/cost.py --depths 20 32 44 56 110 --images 128 256 512 1024 2048

ResNets for CIFAR of the given depths with random weights, compressed to 0.6 of their time at batch 8; the images are
noise. By depth with 512 images, by images with ResNet-20. Prints the exponents of the power laws fitted to both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from networks import Network
from rich.console import Console
from watching import GIGABYTE, table, watched

IMAGES, DEPTH = 512, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="*", default=[20, 32, 44, 56, 110])
    parser.add_argument("--images", type=int, nargs="*", default=[128, 256, 512, 1024, 2048])
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    measure(console, "depth", {depth: (depth, IMAGES) for depth in args.depths})
    measure(console, "images", {images: (DEPTH, images) for images in args.images})


def measure(console: Console, what: str, cases: dict[int, tuple[int, int]]) -> None:
    """A table of one kind of work, with the exponents."""
    found: dict[int, tuple[float, float]] = {}
    shown = table(f"by {what}", what, "seconds", "peak, GB")
    for value, (depth, images) in cases.items():
        with TemporaryDirectory() as name:
            folder = Path(name)
            onnx.save(resnet(depth), folder / "model.onnx")
            data = np.random.default_rng(0).standard_normal((images, 3, 32, 32), np.float32)
            np.savez(folder / "data.npz", input=data)
            command = [sys.executable, "-m", "hmc_onnx", "compress", str(folder / "model.onnx")]
            command += ["--output", str(folder / "smaller.onnx"), "--data", str(folder / "data.npz")]
            command += ["--target", "latency=0.6", "--batch", "8", "--samples", str(images), "--provider", "cpu"]
            usage = watched(command, 20 * GIGABYTE, folder)
        if usage.code != 0:
            console.print(f"{what} {value} FAILED: {usage.said.strip()[-300:]}", markup=False)
            continue
        seconds, peak = found[value] = usage.peak.seconds, usage.peak.peak / GIGABYTE
        shown.add_row(str(value), f"{seconds:.2f}", f"{peak:.2f}")
        console.print(f"{what} {value}: {seconds:.0f} s, {peak:.2f} GB", markup=False)
    if len(found) > 1:
        fits = [np.polyfit(np.log(list(found)), np.log([row[i] for row in found.values()]), 1)[0] for i in (0, 1)]
        shown.add_row("exponent", *(f"{fit:.2f}" for fit in fits))
    console.print(shown)


def resnet(depth: int) -> onnx.ModelProto:
    """The topology for CIFAR: three stages of 16, 32 and 64 channels, 1×1 Convs as the stages' first shortcuts."""
    network, blocks = Network(32), (depth - 2) // 6
    x = network.node("Relu", network.conv("input", 3, 16, 3))
    channels = 16
    for width in (16, 32, 64):
        for block in range(blocks):
            stride = 2 if block == 0 and width > 16 else 1
            y = network.node("Relu", network.conv(x, channels, width, 3, stride))
            y = network.conv(y, width, width, 3, gain=(3 * blocks) ** -0.5)
            if channels != width:
                x = network.conv(x, channels, width, 1, stride)
            x = network.node("Relu", network.node("Add", y, x))
            channels = width
    return network.classified(x, channels, 10)


if __name__ == "__main__":
    main()
