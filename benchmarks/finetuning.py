"""Top-1 of compressed networks before and after fine-tuning, on a whole test split that nothing else sees.

    python benchmarks/finetuning.py MODEL.onnx --data cifar10.npz --preset cifar10 --work-dir DIR \
        --cases macs=0.5:30 latency=0.5:45 macs=0.28:60 [--options batch_size=512 rate=0.02]

A case is a target and the minutes (or, with an `e` behind, the epochs) of its fine-tuning, on the training split, of
which a part is held back to choose the best weights by; with `--images`, on so many images of it, as where a user has
no more. Compressed networks, checkpoints and fine-tuned networks are kept in the folder: a run that was cut off goes
on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from testing import accuracy, arguments, preprocessing

import hmc_onnx
from calib.measure.latency import interleaved
from calib.runtime.batching import serving_feeds
from calib.runtime.sessions import Session


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=["macs=0.5:30", "latency=0.5:45", "macs=0.28:60"])
    parser.add_argument("--batch", type=int, default=8, help="that latency is planned for and measured at")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="to train on, drawn from `train_images` of the .npz file")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="of `hmc_onnx.FineTuning`")
    args = parser.parse_args()
    chosen: dict[str, Any] = dict(option.split("=", 1) for option in args.options)

    proto, preprocess = hmc_onnx.load(args.model), preprocessing(args)
    test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    print(f"{args.model.name}: top-1 {accuracy(proto, test):.2f} %")
    print("| target | top-1 | fine-tuned for | epochs | top-1 | time after / before |\n|---|---|---|---|---|---|")
    for case in args.cases:
        target, _, amount = case.partition(":")
        folder = args.work_dir / f"{target}-seed{args.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        start = compressed(proto, target, preprocess, folder / "compressed.onnx", args)
        bound: dict[str, Any] = {"epochs": float(amount[:-1])} if amount.endswith("e") else {"minutes": float(amount)}
        options = hmc_onnx.FineTuning(**bound, seed=args.seed, **chosen)
        images = args.data if args.images is None else drawn(args.data, args.images, args.seed, folder)
        tuned = hmc_onnx.finetune(
            start,
            proto,
            images,
            preprocess=preprocess,
            options=options,
            work=hmc_onnx.Work(work_dir=folder / "checkpoints"),
        )
        tuned.save(folder / "finetuned.onnx")
        feeds = serving_feeds(test, args.batch)
        ratio = interleaved([Session(start), Session(tuned.model)], feeds).ratio(1)
        last = tuned.history[-1]
        print(
            f"| {target} | {accuracy(start, test):.2f} | {last.seconds / 60:.0f} min | {last.epoch} "
            f"| {accuracy(tuned.model, test):.2f} | {ratio.value:.3f} ± {ratio.uncertainty:.3f} |",
            flush=True,
        )


def drawn(path: Path, count: int, seed: int, folder: Path) -> Path:
    """A file with so many of the training images, and their labels."""
    file = folder / f"{count}-images.npz"
    with np.load(path) as stored:
        at = np.random.default_rng(seed).permutation(len(stored["train_images"]))[:count]
        np.savez(file, images=stored["train_images"][at], labels=stored["train_labels"][at])
    return file


def compressed(
    proto: onnx.ModelProto, target: str, preprocess: Any, path: Path, args: argparse.Namespace
) -> onnx.ModelProto:
    """The compressed network, made unless it is there."""
    if not path.exists():
        data = hmc_onnx.load_data(proto, args.data, preprocess, samples=args.samples, seed=args.seed)
        settings = hmc_onnx.Settings(samples=args.samples, seed=args.seed, batch=args.batch)
        hmc_onnx.compress(proto, data, target, settings=settings, test=data.head(128)).save(path)
    return hmc_onnx.load(path)


if __name__ == "__main__":
    main()
