"""Train torchvision's ResNet-18, 34 or 50 from scratch on a folder of images, and export it to ONNX.

    python benchmarks/train_imagenette.py imagenette --arch resnet18 --size 128 --minutes 60 --work-dir runs/resnet18
    python benchmarks/train_imagenette.py imagenette --arch resnet50 --size 224 --minutes 9 --work-dir runs/resnet50 \
        --mixup 0.2 --jitter 0.3                                     # on a GPU

The folder has `train` and `val` with a folder for each class. In the work folder are the images, decoded once, a
checkpoint, from which a run that was cut off goes on, the log (`log.csv`) and at the end `ARCH.onnx`, whose input is
that of `--preset imagenet --size SIZE SIZE`. The recipe is SGD with Nesterov momentum, a linear warm-up and a cosine,
label smoothing, random resized crops and flips, smaller images first, and an average of the weights over the last
epochs. Nothing is chosen by the validation images. Needs the `finetune` extra. See docs/training.md.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import crops, decoded, normalised
from resnets import RESNETS
from testing import accuracy
from torch import Tensor, nn
from torch.nn import functional as F

import hmc_onnx
from passes.core.atomic import replacing

# Share of the training in which the rate rises from 0.
WARM_UP = 0.1
# Steps by which bf16 and float32 are compared, after one that is not counted.
COMPARED = 3
# Times the step of float32 that the first step in bf16 may take; a processor without bf16 takes far longer.
FAR_SLOWER = 3


def main() -> None:
    args = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    batch = args.batch or (256 if device.type == "cuda" else 64)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    side = round(args.size * 256 / 224)  # as the preset "imagenet" resizes before it crops
    data = {split: decoded(args.data / split, side, args.work_dir, args.limit) for split in ("train", "val")}
    classes = int(data["train"][1].max()) + 1
    torch.manual_seed(args.seed)
    model = RESNETS[args.arch](classes).to(device, memory_format=torch.channels_last)
    state = State(model, copy.deepcopy(model), optimizer(model, args))
    checkpoint = args.work_dir / "checkpoint.pt"
    recipe = {k: str(v) for k, v in vars(args).items() if k not in ("data", "work_dir", "every", "out")}
    if checkpoint.exists():
        state.load(torch.load(checkpoint, map_location=device), recipe)
        print(f"going on behind epoch {state.epoch}, with bf16 {'on' if state.bf16 else 'off'}", flush=True)
    else:
        state.bf16 = bf16_is_faster(model, batch, args.sizes[-1], device)
    print(f"{device}, batches of {batch}, {len(data['train'][0])} images of {classes} classes", flush=True)
    trainer = Trainer(args, state, batch, device)
    while state.progress < 1:
        row = trainer.epoch(*data["train"])
        if state.epoch % args.every == 0 or state.progress >= 1:
            row["top1"] = f"{top1(state.average, *data['val'], args.size):.2f}"
        state.rows.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        with replacing(checkpoint) as path:
            torch.save(state.saved(recipe), path)
        with replacing(args.work_dir / "log.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "size", "rate", "loss", "images_per_s", "seconds", "top1"])
            writer.writeheader()
            writer.writerows(state.rows)
    out = args.out or args.work_dir / f"{args.arch}.onnx"
    export(state.average, args.size, out)
    proto, size = hmc_onnx.load(out), (args.size, args.size)
    test = hmc_onnx.load_data(
        proto, args.data, hmc_onnx.preprocessing("imagenet", size=size), samples=None, split="test"
    )
    print(f"{out}: top-1 {accuracy(proto, test):.2f} % of {len(test)} validation images in onnxruntime")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train/ and val/, and in these a folder for each class")
    parser.add_argument("--arch", choices=sorted(RESNETS), default="resnet18")
    parser.add_argument("--size", type=int, default=128, help="height and width of the network's input")
    parser.add_argument("--sizes", type=int, nargs="+", help="of training, one after the other; default: 3/4, then all")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the ONNX file; default: ARCH.onnx in the work folder")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=40)
    length.add_argument("--minutes", type=float, help="of training, in place of epochs; the schedule fills them")
    parser.add_argument("--batch", type=int, help="default: 256 on a GPU, else 64")
    parser.add_argument("--rate", type=float, default=0.4, help="peak for batches of 256; in proportion for others")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--smoothing", type=float, default=0.1, help="of labels")
    parser.add_argument("--area", type=float, default=0.35, help="smallest share of an image that a crop may have")
    parser.add_argument("--jitter", type=float, default=0.0, help="of brightness, contrast and saturation, such as 0.3")
    parser.add_argument("--mixup", type=float, default=0.0, help="alpha, such as 0.2; for long training")
    parser.add_argument("--ema", type=float, default=2.0, help="epochs over which weights are averaged")
    parser.add_argument(
        "--every", type=int, default=5, help="epochs from one look at the validation images to the next"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="images of each class and split, for a trial")
    args = parser.parse_args()
    args.sizes = args.sizes or [round(args.size * 3 / 4 / 32) * 32 or args.size, args.size]
    return args


def optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.SGD:
    """SGD with Nesterov momentum; biases and batch norms do not decay."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)


@dataclass
class State:
    """All that a checkpoint holds: the network, the average of its weights, and how far the training is."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.SGD
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    bf16: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def saved(self, recipe: dict[str, str]) -> dict[str, Any]:
        """What torch.save is to write."""
        own = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in vars(self).items()}
        return own | {"recipe": recipe}

    def load(self, saved: dict[str, Any], recipe: dict[str, str]) -> None:
        """Take over what was saved."""
        if saved.pop("recipe") != recipe:
            raise SystemExit("the work folder holds a training with other arguments: give another --work-dir")
        for name, value in saved.items():
            own = getattr(self, name)
            if hasattr(own, "load_state_dict"):
                own.load_state_dict(value)
            else:
                setattr(self, name, value)


class Trainer:
    """Trains epoch by epoch; draws depend on the seed and the epoch alone."""

    def __init__(self, args: argparse.Namespace, state: State, batch: int, device: torch.device) -> None:
        self.args, self.state, self.batch, self.device = args, state, batch, device
        self.stored: Tensor | None = None

    def epoch(self, images: np.ndarray, labels: Tensor) -> dict[str, Any]:
        """Train for an epoch, or until the time is over; returns its row of the log."""
        args, state = self.args, self.state
        random = torch.Generator().manual_seed(1_000_003 * args.seed + state.epoch)
        order, count = torch.randperm(len(images), generator=random), len(images) // self.batch
        size = args.sizes[min(int(state.progress * len(args.sizes)), len(args.sizes) - 1)]
        begun, start, done = state.seconds, time.perf_counter(), 0
        total = torch.zeros((), device=self.device)  # read at the end alone, so that a GPU is never waited for
        state.model.train()
        for index in order[: count * self.batch].split(self.batch):
            x = crops(self.taken(images, index), size, args, random)
            rate = args.rate * self.batch / 256 * schedule(state.progress)
            total += self.step(x, labels[index].to(self.device), rate, random)
            done += 1
            state.steps += 1
            self._average(1 / (args.ema * count))
            state.seconds = begun + time.perf_counter() - start
            state.progress = (
                state.seconds / (60 * args.minutes) if args.minutes else state.steps / (count * args.epochs)
            )
            if state.progress >= 1:
                break
        loss = float(total) / done
        state.epoch, state.seconds = state.epoch + 1, begun + time.perf_counter() - start
        speed = done * self.batch / (state.seconds - begun)
        row = {"epoch": state.epoch, "size": size, "rate": f"{rate:.4f}", "loss": f"{loss:.4f}"}
        return row | {"images_per_s": f"{speed:.0f}", "seconds": f"{state.seconds:.0f}"}

    def step(self, x: Tensor, y: Tensor, rate: float, random: torch.Generator) -> Tensor:
        """One step of training; returns the loss."""
        state, loss_of = self.state, partial(F.cross_entropy, label_smoothing=self.args.smoothing)
        share, other = 1.0, y
        if self.args.mixup:
            share = float(
                np.random.default_rng(int(torch.randint(2**31, (), generator=random))).beta(*[self.args.mixup] * 2)
            )
            x, other = share * x + (1 - share) * x.flip(0), y.flip(0)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=state.bf16):
            logits = state.model(x.contiguous(memory_format=torch.channels_last))
        loss = share * loss_of(logits.float(), y) + (1 - share) * loss_of(logits.float(), other)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        return loss.detach()

    def taken(self, images: np.ndarray, index: Tensor) -> Tensor:
        """Some images on the device; on a GPU with room for them, all are there from the first step on."""
        if self.device.type == "cuda" and images.nbytes < torch.cuda.get_device_properties(0).total_memory / 4:
            if self.stored is None:
                self.stored = torch.from_numpy(np.array(images)).to(self.device)
            return self.stored[index.to(self.device)]
        return torch.from_numpy(images[index.numpy()]).to(self.device)

    @torch.no_grad()
    def _average(self, least: float) -> None:
        """Move the average towards the network: by at least that share of the way, and by more at first."""
        share = max(least, 9 / (10 + self.state.steps))
        pairs = zip(self.state.average.state_dict().values(), self.state.model.state_dict().values(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)


def schedule(progress: float) -> float:
    """Share of the peak rate: a line up, and half a cosine down."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min((progress - WARM_UP) / (1 - WARM_UP), 1)))


def bf16_is_faster(model: nn.Module, batch: int, size: int, device: torch.device) -> bool:
    """Whether a step of training takes less time with autocast to bfloat16; prints both times."""
    if device.type == "cpu":
        batch = min(batch, 16)
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def step(own: nn.Module, bf16: bool) -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = own(x).float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds: list[float] = []
    for bf16 in (False, True):
        own = copy.deepcopy(model)
        first = step(own, bf16)
        if bf16 and device.type == "cpu" and first > FAR_SLOWER * seconds[0]:
            seconds.append(first)
        else:
            seconds.append(sum(step(own, bf16) for _ in range(COMPARED)) / COMPARED)
    print(f"a step of {batch} images takes {seconds[0]:.3f} s in float32 and {seconds[1]:.3f} s in bf16", flush=True)
    return seconds[1] < seconds[0]


@torch.no_grad()
def top1(model: nn.Module, images: np.ndarray, labels: Tensor, size: int) -> float:
    """Top-1 in percent of the centre crops, in float32."""
    device, first = next(model.parameters()).device, round((images.shape[-1] - size) / 2)
    model.eval()
    right = 0
    for index in torch.arange(len(images)).split(100):
        x = torch.from_numpy(images[index.numpy()][:, :, first : first + size, first : first + size].copy()).to(device)
        x = normalised(x).contiguous(memory_format=torch.channels_last)
        right += int((model(x).argmax(1).cpu() == labels[index]).sum())
    return 100 * right / len(images)


def export(model: nn.Module, size: int, path: Path) -> None:
    """Write the network to an ONNX file; the exporter folds the batch norms."""
    model = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    with replacing(path) as temporary:
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, size, size),),
            temporary,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
