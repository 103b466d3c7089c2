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
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from hmc_onnx.subjects import find_subjects
from passes.channels import trace
from passes.normalise import normalise

PARTS = ("analysis", "inspect", "memory", "memory-compress")
BLOCKS = (10, 20, 40, 80, 160)
GIGABYTE = 1e9
# A process is looked at this often, in seconds. What comes and goes in between is missed.
INTERVAL = 0.05
# Looking at many gigabytes takes longer, and holds up who is looked at: at most this share of the time goes into it.
SHARE = 0.1
# The small blocks in front of the wide Gemm; of few channels, as those of 3×3 Convs take long to decompose.
SMALL_BLOCKS, SMALL_CHANNELS = 6, 24
GEMMS = 2  # side by side, as one would be a tensor of more than 2 GiB, which protobuf refuses
# The command line with few candidates.
FEW = """
from hmc_onnx import candidates, cells, elimination
from hmc_onnx.cli import main
cells.SHARES, candidates.RATIOS, candidates.RATIOS_WHEN_PRUNED = (0.9375,), (), ()
elimination.LOTS = 16
main()
"""
# Height and width of the input of the models whose memory is measured, by where they have their weights.
SIZES = {"convs": 4, "gemm": 24}


class Network:
    """An image classifier, put together node by node; every method returns the name of its output.

    Args:
        size: height and width of the input.
        data: where to write the weights as they are drawn, so that a model of any size is made in little memory;
            they are kept in the model if it is not given.
    """

    def __init__(self, size: int, data: BinaryIO | None = None) -> None:
        self.size = size
        self.data = data
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def weight(self, name: str, shape: Sequence[int], scale: float) -> str:
        """An initializer, normal with standard deviation `scale`; returns its name."""
        values = self.random.standard_normal(shape, np.float32) * np.float32(scale)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        if self.data is None:
            tensor.raw_data = values.tobytes()
        else:
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": values.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self.data.write(values.tobytes())
        self.initializers.append(tensor)
        return name

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        """Any operator with one output."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}:out"], name=name, **attributes))
        return f"{name}:out"

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, gain: float = 1.0) -> str:
        """A Conv as exporters leave it once the batch norm behind it is folded: with a bias."""
        name = f"conv_{len(self.nodes)}"
        scale = gain * math.sqrt(2 / (inputs * kernel**2))
        weight = self.weight(f"{name}:weight", (outputs, inputs, kernel, kernel), scale)
        bias = self.weight(f"{name}:bias", (outputs,), 0.1)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", x, weight, bias, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        """A fully connected layer."""
        name = f"gemm_{len(self.nodes)}"
        weight = self.weight(f"{name}:weight", (outputs, inputs), 1 / math.sqrt(inputs))
        return self.node("Gemm", x, weight, self.weight(f"{name}:bias", (outputs,), 0.1), transB=1)

    def model(self, output: str, classes: int) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, self.size, self.size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes])],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def classified(self, x: str, inputs: int, classes: int) -> onnx.ModelProto:
        """The finished model, with a ResNet's head behind its features."""
        features = self.node("Flatten", self.node("GlobalAveragePool", x), axis=1)
        return self.model(self.gemm(features, inputs, classes), classes)


def residual_trunk(network: Network, blocks: int, channels: int, kernel: int) -> str:
    """Blocks of two Convs each, all of one width, behind a stem."""
    x = network.node("Relu", network.conv("input", 3, channels, kernel))
    gain = 1 / math.sqrt(blocks)  # so that the sum of all blocks stays moderate
    for _ in range(blocks):
        y = network.node("Relu", network.conv(x, channels, channels, kernel))
        y = network.conv(y, channels, channels, kernel, gain=gain)
        x = network.node("Relu", network.node("Add", y, x))
    return x


def residual_network(network: Network, blocks: int, channels: int, kernel: int) -> onnx.ModelProto:
    """The trunk with a ResNet's head."""
    return network.classified(residual_trunk(network, blocks, channels, kernel), channels, 10)


def bottlenecks(*depths: int) -> onnx.ModelProto:
    """torchvision's topology: bottlenecks, the stride at their 3×3 Conv, a 1×1 Conv as each stage's first shortcut.

    Args:
        depths: blocks of each of the four stages; (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) ResNet-152.
    """
    network = Network(224)
    x = network.node("Relu", network.conv("input", 3, 64, 7, 2))
    x = network.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    gain = 1 / math.sqrt(sum(depths))  # so that the sum of all blocks stays moderate
    for width, blocks, first_stride in zip((64, 128, 256, 512), depths, (1, 2, 2, 2), strict=True):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y = network.node("Relu", network.conv(x, channels, width, 1))
            y = network.node("Relu", network.conv(y, width, width, 3, stride))
            y = network.conv(y, width, 4 * width, 1, gain=gain)
            if block == 0:
                x = network.conv(x, channels, 4 * width, 1, stride)
            x = network.node("Relu", network.node("Add", y, x))
            channels = 4 * width
    return network.classified(x, channels, 1000)


def table(title: str, *columns: str) -> Table:
    """A table that can be pasted into the docs."""
    made = Table(title=title, title_justify="left", box=MARKDOWN)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left")
    return made


def analysis(console: Console) -> None:
    inputs = {"input": (1, 3, 32, 32)}
    steps: dict[str, list[float]] = {"normalise": [], "find_subjects": [], "trace": [], "in all": []}
    shown = table("Analysis, seconds (median of 3)", "blocks", "nodes", *steps)
    for blocks in BLOCKS:
        proto = residual_network(Network(32), blocks, 64, 3)
        runs = []
        for _ in range(4):  # the first warms up
            start = time.perf_counter()
            model = normalise(proto)
            normalised = time.perf_counter()
            find_subjects(model, inputs)
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


@dataclass
class Stage:
    """Seconds that a stage took, and the most memory, in bytes, that the command held in it."""

    seconds: float = 0.0
    peak: int = 0
    anonymous: int = 0
    """Of the peak, what is no page of a file, which the system could drop at any time."""


@dataclass
class Usage:
    """What a command used.

    Attributes:
        stages: by what the command said last on standard error when it was looked at.
        code: its exit status; None where it was stopped for its memory.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    code: int | None = None
    said: str = ""

    @property
    def peak(self) -> Stage:
        """The stage with the highest peak, with the seconds of all."""
        highest = max(self.stages.values(), key=lambda stage: stage.peak)
        return Stage(sum(s.seconds for s in self.stages.values()), highest.peak, highest.anonymous)


def descendants(root: int) -> set[int]:
    """A process and all that it has started, by id."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])  # a name may hold brackets and spaces
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def memory_of(processes: set[int]) -> tuple[int, int]:
    """Bytes resident, and of these the anonymous ones; what several processes share is split among them (Pss)."""
    sums = {"Pss:": 0, "Pss_Anon:": 0}
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        for line in lines[1:]:
            key, kilobytes, *_ = line.split()
            if key in sums:
                sums[key] += 1024 * int(kilobytes)
    return sums["Pss:"], sums["Pss_Anon:"]


def watched(command: Sequence[str], most: float, folder: Path) -> Usage:
    """Run a command to its end, or until it and what it has started hold more than `most` bytes."""
    usage = Usage()
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        # a session of its own, so that all of it can be stopped
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
    try:
        before = time.perf_counter()
        while process.poll() is None:
            looked = time.perf_counter()
            now, anonymous = memory_of(descendants(process.pid))
            looked = time.perf_counter() - looked
            lines = errors.read_text().splitlines()
            stage = usage.stages.setdefault(lines[-1] if lines else "start, load", Stage())
            stage.seconds += time.perf_counter() - before
            before = time.perf_counter()
            if now > stage.peak:
                stage.peak, stage.anonymous = now, anonymous
            if now > most:
                return usage
            time.sleep(max(INTERVAL, looked / SHARE))
        usage.code = process.returncode
    finally:
        usage.said = errors.read_text()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return usage


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
