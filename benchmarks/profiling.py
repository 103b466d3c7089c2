"""Seconds to measure a candidate's sensitivity, against a whole model built and run for each; side by side, in turns.

    python benchmarks/profiling.py MODEL.onnx --data cifar10.npz --preset cifar10 --candidates 40

The profile measures all candidates; of these a sample is drawn, written into a copy of the model and run on the same
images by a session of its own, with all threads. The seconds that the profile spends on sensitivity, all in all, are
divided by its candidates.
"""

from __future__ import annotations

import time

import numpy as np
import onnx
from testing import arguments, preprocessing

import hmc_onnx
from calib.measure.divergence import divergence
from calib.runtime.sessions import Session
from passes.graph.layers import layer_of, write_layer
from passes.graph.model import Model
from passes.graph.shapes import batch_one, infer_shapes
from passes.normal_form.normalise import normalise


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--candidates", type=int, default=40)
    args = parser.parse_args()
    proto = hmc_onnx.load(args.model)
    data = hmc_onnx.load_data(proto, args.data, preprocessing(args), samples=args.samples)
    settings = hmc_onnx.Settings(samples=args.samples, latency=True, provider="cpu")
    began: dict[str, float] = {}
    ended: dict[str, float] = {}

    def progress(what: str, done: int, of: int) -> None:
        began.setdefault(what, time.perf_counter())
        ended[what] = time.perf_counter()

    profile = hmc_onnx.profile(proto, data, settings, hmc_onnx.Work(progress=progress))
    count = sum(c.rank > 0 and c.measured for x in profile.layers for c in x.choices)
    count += sum(len(g.choices) - 1 for g in profile.groups)
    ours = (ended["sensitivity"] - began["sensitivity"]) / count
    images = data.head(256)
    chunks = [feeds for feeds, _ in images.chunks(settings.chunk)]
    reference = [[o] for o in _outputs(proto, chunks)]
    seconds, rng = [], np.random.default_rng(0)
    names = [x.name for x in profile.layers]
    for name in rng.choice(names, args.candidates):
        candidate = _changed(proto, str(name), rng)
        start = time.perf_counter()
        divergence([[o[0] for o in reference]], [_outputs(candidate, chunks)])
        seconds.append(time.perf_counter() - start)
    theirs = float(np.mean(seconds))
    print(f"{count} candidates on {len(images)} images: {1e3 * ours:.0f} ms each")
    print(f"{len(seconds)} of them as whole models, a session built for each: {1e3 * theirs:.0f} ms each")
    print(f"{theirs / ours:.1f} times fewer seconds")


def _changed(proto: onnx.ModelProto, name: str, rng: np.random.Generator) -> onnx.ModelProto:
    """A model one of whose layers has another kernel."""
    model: Model = normalise(proto)
    node = next(n for n in model.graph.nodes if n.name == name)
    layer = layer_of(node, infer_shapes(model, batch_one(model)))
    noise = 0.01 * np.abs(layer.weight).mean() * rng.standard_normal(layer.weight.shape)
    write_layer(model.graph, node, layer.weight + noise, layer.bias)
    return model.to_proto()


def _outputs(proto: onnx.ModelProto, chunks: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    session = Session(proto)
    return [session.run(chunk)[0] for chunk in chunks]


if __name__ == "__main__":
    main()
