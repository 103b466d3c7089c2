"""What polishing the factors of a decomposition gains: the share of a layer's response that is lost, by steps.

    python benchmarks/polishing.py resnet56-cifar10.onnx --data cifar10.npz --preset cifar10

For every few layers of 3×3, CP and spatial SVD at two shares of the layer's MACs. In brackets is how much CP's
terms cancel each other: the sum of their squared responses over the squared response of their sum.
"""

from __future__ import annotations

import math

import numpy as np
from testing import arguments, preprocessing, table

import hmc_onnx
import passes.decompose.polish as polishing
from calib.measure.moments import Moments, sample_positions, sampled_patches
from calib.measure.walk import Walk
from passes.decompose import DECOMPOSITIONS, compose, error, spatial_svd
from passes.graph.layers import Geometry

STEPS = (0, 10, 30, 100, 300)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--every", type=int, default=9, help="of how many layers one is shown")
    parser.add_argument("--methods", nargs="+", default=["cp", "spatial"], choices=["cp", "spatial"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.2], help="of the layer's MACs")
    args = parser.parse_args()

    proto = hmc_onnx.load(args.model)
    images = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=args.samples)
    run = hmc_onnx.Run(proto, images, hmc_onnx.Settings(samples=args.samples, provider="cpu"))
    layers = [s for s in run.compressible.layers.values() if math.prod(s.layer.geometry.kernel) == 9 and not s.grouped]
    walk, rng = Walk(run.normal, run.chunks, run.runtime, run.memory), np.random.default_rng(0)
    rows = []
    for subject in sorted(layers, key=lambda s: s.uses[0].position)[:: args.every]:
        use, geometry, weight = subject.uses[0], subject.layer.geometry, subject.layer.weight
        positions, moments = sample_positions(geometry, use.size, 64, rng), Moments()
        walk.advance([use.input])
        for x in walk.values(use.input):
            moments.update(sampled_patches(x, geometry, positions))
        for name in args.methods:
            for share in args.shares:
                rank = DECOMPOSITIONS[name].rank_for(geometry, subject.size, share, 4)
                if rank is not None:
                    cells = [cell(name, geometry, weight, moments.second, rank, n) for n in STEPS]
                    rows.append([subject.layer.name, name, f"{share:g}", str(rank), *cells])
                    print(" ".join(rows[-1]), flush=True)
    print(table(["layer", "method", "MACs", "rank", *(f"{n} steps" for n in STEPS)], rows))


def cell(name: str, geometry: Geometry, weight: np.ndarray, moment: np.ndarray, rank: int, steps: int) -> str:
    """The share lost; of CP, how much the terms cancel."""
    method, flat = DECOMPOSITIONS[name], weight.reshape(len(weight), -1)
    polishing.STEPS, spatial_svd.MOST_STEPS, polishing.WORK = steps, steps, 1e18
    factors = method.factors(geometry, weight, moment, rank)
    found = compose(method.links(geometry, rank), factors)
    response = error(weight, np.zeros_like(weight), moment)
    lost = f"{error(weight, found, moment) / response:.4f}"
    if name == "cp":
        inputs, places, outputs = (f.reshape(len(f), -1) for f in factors)
        terms = np.einsum("ri,rk->rik", inputs, places).reshape(rank, flat.shape[1])
        sizes = np.einsum("rn,rn->r", terms @ moment, terms) * (outputs**2).sum(0)
        whole = outputs @ terms
        lost += f" ({sizes.sum() / np.vdot(whole @ moment, whole):.1f})"
    return lost


if __name__ == "__main__":
    main()
