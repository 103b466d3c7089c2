"""Make `cifar10-sample.npz`: 1,024 unlabelled CIFAR-10 training images and 1,000 labelled test images.

python examples/make_sample.py --data cifar10.npz --out examples/cifar10-sample.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz with train_images, test_images, test_labels")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with np.load(args.data) as data:
        train = np.sort(rng.choice(len(data["train_images"]), 1024, replace=False))
        test = np.sort(rng.choice(len(data["test_images"]), 1000, replace=False))
        np.savez_compressed(
            args.out,
            train_images=data["train_images"][train],
            test_images=data["test_images"][test],
            test_labels=data["test_labels"][test],
        )


if __name__ == "__main__":
    main()
