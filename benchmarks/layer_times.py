"""How far repeated measurements of the times of layers and chains differ, on a machine as it is.

    python benchmarks/layer_times.py resnet20-cifar10.onnx --data cifar10.npz --preset cifar10 --rounds 4

Each round measures all candidates for a network anew in three ways, one after the other: lots of probes one by one, as
up to a version that is past; lots in turns; and lots in turns that are run again where they were disturbed, as it is
now. For each measurement: seconds, and how far its times differ from the least that were found of the same probes in
all rounds. They differ by a factor, which is the median over the probes and does no harm, and by a spread around it,
which a plan takes for a difference between candidates. Probes of less than 20 microseconds do not count, as the
profiler gives whole microseconds.
"""

from __future__ import annotations

import time

import numpy as np
from testing import arguments, preprocessing, table

import hmc_onnx
from calib.measure import probing
from calib.runtime.sessions import CPU
from hmc_onnx.profiling.candidate_times import Clock
from hmc_onnx.profiling.whole_table import every_chain

# Numbers of lots that run in turns, and of tries at most.
WAYS = {
    "one by one": (1, 1),
    "in turns": (probing.LOTS, 1),
    "in turns, again where disturbed": (probing.LOTS, probing.TRIES),
}
LEAST = 20e-6


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    images = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=64)
    run = hmc_onnx.Run(proto, images, hmc_onnx.Settings(samples=64, batch=args.batch, provider="cpu", latency=True))
    clock = Clock(run)
    chains = every_chain(run, align=8)
    probes = {str(p): p for name, own in chains.items() for chain in own for p in clock.probes(name, chain)}
    found: list[tuple[str, float, dict[str, float]]] = []
    for number in range(args.rounds):
        for way, (lots, tries) in WAYS.items():
            probing.LOTS, probing.TRIES = lots, tries
            probing._timed.clear()
            start = time.perf_counter()
            times = {str(p): found.value for p, found in probing.time_probes(list(probes.values()), CPU) if found}
            found.append((way, time.perf_counter() - start, times))
            print(f"round {number + 1}: {way}, {found[-1][1]:.0f} s", flush=True)

    least = {key: min(times[key] for _, _, times in found) for key in probes}
    counted = [key for key, seconds in least.items() if seconds >= LEAST]
    rows = []
    for way, seconds, times in sorted(found, key=lambda row: list(WAYS).index(row[0])):
        logs = np.log([times[key] / least[key] for key in counted])
        rows.append([way, f"{seconds:.0f}", f"{np.exp(np.median(logs)):.2f}", f"{np.std(logs):.3f}"])
    print(f"\n{len(probes)} probes, {len(counted)} of them counted\n")
    print(table(["lots", "seconds", "factor", "spread"], rows))


if __name__ == "__main__":
    main()
