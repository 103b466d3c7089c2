r"""Train the ResNet-20 that ships in `examples/`, on CIFAR-10, and export it to ONNX.

    python examples/train_resnet20.py --data cifar10.npz --out examples/resnet20-cifar10.onnx \
        | tee examples/train_resnet20.log

The network is He et al.'s ResNet-20 for CIFAR-10 (arXiv 1512.03385, section 4.2) with parameter-free
"option A" shortcuts: spatial stride 2 and zero-padded channels. It trains on the 50,000 training images
alone; the 10,000 test images are used once, for the last line of the log. Needs the `finetune` extra.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3×3 Convs; the shortcut subsamples and zero-pads the channels where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """(N, 3, 32, 32) float32 -> (N, 10) logits; 0.27 M parameters, 41 M MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
                for inputs, outputs, stride in widths
                for i in range(3)
            )
        )
        self.fc = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


def crop_and_flip(images: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
    """Random 32×32 crops of the images padded by 4, and flips that alternate from epoch to epoch.

    Alternating flips (every image is seen in both directions in any two epochs) waste no epoch on a
    repeated view: Jordan, "94% on CIFAR-10 in 3.29 seconds", arXiv 2404.00498.
    """
    n = len(images)
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (N, 3, 9, 9, 32, 32), a view
    dy, dx = torch.randint(0, 9, (2, n), generator=generator)
    crops = windows[torch.arange(n), :, dy, dx]
    flip_first = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.5
    flip = flip_first ^ bool(epoch % 2)
    return torch.where(flip[:, None, None, None], crops.flip(3), crops)


def normalise(images: Tensor) -> Tensor:
    """uint8 NCHW in 0..255 -> float32, normalised by MEAN and STD, channels-last."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in per cent, in float32."""
    model.eval()
    pairs = zip(images.split(500), labels.split(500), strict=True)
    hits = sum(int((model(normalise(x)).argmax(1) == y).sum()) for x, y in pairs)
    return 100 * hits / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz with train_images, train_labels, test_…")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak-lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("arguments:", {k: str(v) for k, v in vars(args).items() if k not in ("data", "out")}, flush=True)

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    with np.load(args.data) as data:
        images, test_images = (torch.from_numpy(data[f"{s}_images"]) for s in ("train", "test"))
        labels, test_labels = (torch.from_numpy(data[f"{s}_labels"]).long() for s in ("train", "test"))

    model = ResNet20().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.peak_lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.peak_lr, args.epochs * steps, pct_start=0.15, cycle_momentum=False
    )
    start = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        augmented = crop_and_flip(images, epoch, generator)
        total = 0.0
        for step in range(steps):
            index = order[step * args.batch : (step + 1) * args.batch]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalise(augmented[index]))
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1:3d}  loss {total / steps:.4f}  {seconds:.0f} s", flush=True)

    print(f"test top-1 {top1(model, test_images, test_labels):.2f} %", flush=True)
    batch = torch.zeros(1, 3, 32, 32)
    torch.onnx.export(
        model.eval().to(memory_format=torch.contiguous_format),
        (batch,),
        args.out,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
