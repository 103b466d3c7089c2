"""Top-1 after compressing and fine-tuning in several rounds, at equal time of training.

    python benchmarks/rounds.py MODEL.onnx --data cifar10.npz --preset cifar10 --macs 0.28 --minutes 20 --rounds 1 2

In each of N rounds the network of the round before is compressed to the N-th root of the share of the MACs, and trained
against the original for the N-th part of the time, on the training split; top-1 is of the whole test split.
"""

from __future__ import annotations

from testing import accuracy, arguments, preprocessing

import hmc_onnx


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--macs", type=float, default=0.28)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, in all")
    parser.add_argument("--rounds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    proto, preprocess = hmc_onnx.load(args.model), preprocessing(args)
    test = hmc_onnx.load_data(proto, args.data, preprocess, samples=None, split="test")
    data = hmc_onnx.load_data(proto, args.data, preprocess, samples=1024, seed=args.seed)
    settings = hmc_onnx.Settings(seed=args.seed)
    print(f"{args.model.name}: top-1 {accuracy(proto, test):.2f} %")
    print("| rounds | round | MACs | top-1 | fine-tuned for | top-1 |\n|---|---|---|---|---|---|")
    for rounds in args.rounds:
        model, macs = proto, 1.0
        for number in range(1, rounds + 1):
            share = args.macs ** (number / rounds) / macs  # of what the round before has left
            result = hmc_onnx.compress(model, data, f"macs={share:.4f}", settings=settings, test=data.head(128))
            macs *= result.plan.macs / result.profile.macs
            options = hmc_onnx.FineTuning(minutes=args.minutes / rounds, seed=args.seed)
            tuned = hmc_onnx.finetune(result.model, proto, args.data, preprocess=preprocess, options=options)
            before, after = accuracy(result.model, test), accuracy(tuned.model, test)
            minutes = tuned.history[-1].seconds / 60
            print(f"| {rounds} | {number} | {macs:.3f} | {before:.2f} | {minutes:.1f} min | {after:.2f} |", flush=True)
            model = tuned.model


if __name__ == "__main__":
    main()
