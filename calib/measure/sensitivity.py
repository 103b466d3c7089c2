"""Sensitivity: how far the network's output moves when some of its weights are replaced.

It is the divergence of the outputs from the original's (`calib.measure.divergence`), over calibration images without
labels; class scores are compared at a temperature that lowers the original's confidence. Only the part of the graph
behind the change runs, on activations that one walk over the graph holds. One session serves every value that is tried
for the same weights, and for weights close by in the graph.

Early stopping. All options of a change (the values tried for its weights) run on the first images, and only some of
them on the rest. An option stops when it is *out* or *known*.

- Out: it lies above the lower convex hull of sensitivity over cost, with a given confidence. A plan that mixes many
  changes never uses such an option.
- Known: its standard error is small enough, on half of the images or more. More images would hardly help:
  sensitivities on images that the network was trained on predict those on other images only up to a factor of about
  1.7 (ResNet-56; `benchmarks/sensitivity.py`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from scipy.special import ndtri

from calib.measure.divergence import check_comparable, divergences, settled, temperature
from calib.measure.walk import Tail, Walk
from calib.runtime.sessions import CPU, Runtime
from passes.core.errors import ModelError
from passes.core.progress import Progress, silent
from passes.graph.model import Model
from passes.graph.outputs import Kind
from passes.graph.protos import byte_size

__all__ = ["BROKEN", "Bench", "Change", "Gauge", "cut", "forget", "known", "measure", "sensitivities", "windows"]

# Nats that an image counts whose output is NaN or infinite behind a change: about as much as the largest finite ones.
BROKEN = 100.0
# Changes share a session when they lie within this share of the nodes behind the first of them. A larger window builds
# fewer sessions, but runs more nodes again for the later changes. It also keeps onnxruntime from its fastest kernels
# for all weights in it, as these are not constant.
WINDOW = 0.05
# All options run on this share of the images first; options that are still open run on as many more at a time.
FIRST = 0.25
# An option is known when its standard error is at most KNOWN times its mean, over half of the images and KNOWN_IMAGES
# or more. (The standard error is itself only an estimate, and too small where the few images lack those on which the
# network is unsure.)
KNOWN, KNOWN_IMAGES = 0.25, 8

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Change:
    """Initializers that are replaced together, and the options: the values to try for them.

    Attributes:
        tensor: name of the activation that the first affected node, in graph order, reads.
        position: index of that node in the graph.
        initializers: names of the initializers.
        options: by key, a function that makes the values of an option, by initializer name.
        costs: by key, the cost of an option as a share of the unchanged cost; without costs no option is out early.
    """

    tensor: str
    position: int
    initializers: tuple[str, ...]
    options: Mapping[Hashable, Callable[[], Values]]
    costs: Mapping[Hashable, float] = field(default_factory=dict)

    def made(self) -> Change:
        """The same change with all values made, so that it can be sent to another process."""
        options = {key: _Made(values()) for key, values in self.options.items()}
        return Change(self.tensor, self.position, self.initializers, options, self.costs)


@dataclass(frozen=True)
class _Made:
    values: Values

    def __call__(self) -> Values:
        return self.values


class Gauge:
    """Measures changes in graph order, on one walk.

    Args:
        walk: at the start of its graph.
        confidence: the confidence (0 to 1) at which an option counts as out; None: all options run on all images.

    Raises:
        ModelError: the network's output is NaN on some images.
    """

    def __init__(self, walk: Walk, confidence: float | None = None) -> None:
        self.walk = walk
        self.reached = -1  # index of the window that the walk has reached
        self._confidence = confidence
        tail = walk.tail([])
        self._reference = tail.outputs({})
        self._judged = settled(tail.judged, self._reference, walk.images)
        check_comparable(self._judged)
        if any(np.isnan(chunk).any() for output in self._reference for chunk in output):
            raise ModelError(
                "the model's output is NaN on some calibration images: "
                "check its weights, and that the images are preprocessed as for training"
            )
        first = self._judged[0]
        self._temperature = temperature(self._reference[0], first, walk.images) if first.classes else 1.0
        self._first = math.ceil(len(walk.chunks) * FIRST)

    def advance(self, tensor: str) -> None:
        """Move the walk to the next window, which begins at a tensor."""
        self.walk.advance([tensor])
        self.reached += 1

    def measure(self, window: Sequence[Change], done: Callable[[], None] = lambda: None) -> dict[Hashable, float]:
        """Sensitivities in nats by option key, for changes that share a session.

        Args:
            window: the changes; see `windows`.
            done: called once for each option, when it has run on its first images.
        """
        self.advance(cut(window))
        tail = self.walk.tail([name for change in window for name in change.initializers])
        results: dict[Hashable, float] = {}
        for change in window:
            all_, few = len(self.walk.chunks), change.costs and self._confidence is not None
            step = self._first if few else all_
            nats: dict[Hashable, np.ndarray] = {}
            for start in range(0, all_, step):
                for key in self._open(change.costs, nats) if nats else change.options:
                    found = self._divergences(tail, change.options[key](), slice(start, start + step))
                    nats[key] = np.concatenate([nats.get(key, found[:0]), found])
                    if start == 0:
                        done()
            results |= {key: max(float(n.mean()), 0.0) for key, n in nats.items()}
        return results

    def _open(self, costs: Mapping[Hashable, float], nats: Mapping[Hashable, np.ndarray]) -> list[Hashable]:
        """The options to run on more images: those that have run on all so far, and are neither out nor known."""
        most, images = max(map(len, nats.values())), sum(self.walk.images)
        going = [key for key, own in nats.items() if len(own) == most and not known(own, images)]
        return [key for key in going if not _out(key, costs, nats, self._confidence or 0.0)]

    def _divergences(self, tail: Tail, values: Values, chunks: slice) -> np.ndarray:
        """Those of each image, finite: a network with an Exp in it may answer a large error with infinity or NaN."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = divergences(
                [output[chunks] for output in self._reference],
                tail.outputs(values, chunks),
                self._reference,
                self._temperature,
                self._judged,
                self.walk.images[chunks],
            )
        return np.where(np.isfinite(found), found, BROKEN)


def known(nats: np.ndarray, images: int) -> bool:
    """Whether a sensitivity is known from the nats of some images, (n,), of the `images` that there are."""
    enough = len(nats) >= max(images / 2, KNOWN_IMAGES)
    return enough and bool(nats.std() <= KNOWN * nats.mean() * math.sqrt(len(nats)))


def _out(
    key: Hashable, costs: Mapping[Hashable, float], nats: Mapping[Hashable, np.ndarray], confidence: float
) -> bool:
    """Whether an option lies above the lower convex hull of sensitivity over cost; "no change" is a point of the hull.

    The option is compared with each option that costs no more, and with each line between a cheaper and a dearer one.
    The largest mean distance, over the images that all of them have run on, decides: the option is out if that is
    larger than its standard error times the normal quantile of the confidence.
    """
    own, cost = nats[key], costs[key]
    others = [(costs[k], n) for k, n in nats.items() if k != key] + [(1.0, np.zeros_like(own))]
    above = [own[: len(n)] - n for c, n in others if c <= cost]
    for low, cheap in [p for p in others if p[0] < cost]:
        for high, dear in [p for p in others if p[0] > cost]:
            share, common = (cost - low) / (high - low), min(len(cheap), len(dear))
            above.append(own[:common] - (1 - share) * cheap[:common] - share * dear[:common])
    if not above:
        return False
    most = max(above, key=np.mean)
    return len(most) > 1 and bool(most.mean() > float(ndtri(confidence)) * most.std() / math.sqrt(len(most)))


def sensitivities(
    walk: Walk, changes: Sequence[Change], progress: Progress = silent, confidence: float | None = None
) -> dict[Hashable, float]:
    """Sensitivities in nats by option key, for all changes.

    Args:
        walk: at the start of its graph.
        changes: in any order.
        progress: is told how many options have been measured.
        confidence: as for `Gauge`.

    Raises:
        ModelError: the network's output is NaN on some images.
    """
    gauge = Gauge(walk, confidence)
    results: dict[Hashable, float] = {}
    of, count = sum(len(c.options) for c in changes), 0

    def done() -> None:
        nonlocal count
        count += 1
        progress("sensitivity", count, of)

    progress("sensitivity", 0, of)
    for window in windows(changes, len(walk.model.graph.nodes)):
        results |= gauge.measure(window, done)
    return results


def windows(changes: Sequence[Change], nodes: int, most: int | None = None) -> Iterator[list[Change]]:
    """Divide the changes into windows, in graph order; the changes of a window share a session, cut at the first.

    Args:
        changes: in any order; those without options are left out.
        nodes: number of nodes of the graph.
        most: upper bound on the options of a window of more than one change.
    """
    window: list[Change] = []
    for change in sorted((c for c in changes if c.options), key=lambda c: c.position):
        far = window and change.position > window[0].position + WINDOW * (nodes - window[0].position)
        many = most is not None and sum(len(c.options) for c in [*window, change]) > most
        if window and (far or many):
            yield window
            window = []
        window.append(change)
    if window:
        yield window


def cut(window: Sequence[Change]) -> str:
    """The tensor at which a window begins."""
    return min(window, key=lambda c: c.position).tensor


@dataclass(frozen=True)
class Bench:
    """Everything that a worker needs to measure; it is sent to each worker once.

    Attributes:
        key: identity of the bench, by which a worker finds the walk that it keeps.
        model: the graph.
        chunks: the calibration images, as one feed of the model's inputs per chunk.
        cuts: the tensors at which the windows begin. Each worker stops at all of them, whichever windows it measures,
            so that rounding is the same in all workers.
        runtime: how to run the model.
        confidence: as for `Gauge`.
        memory: bytes of activations that one worker may hold in memory.
        kinds: kind of each output for which the user has stated it, by name.
    """

    key: str
    model: onnx.ModelProto
    chunks: list[dict[str, np.ndarray]]
    cuts: list[str]
    runtime: Runtime = CPU
    confidence: float | None = None
    memory: int | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def __sizeof__(self) -> int:
        return byte_size(self.model) + sum(array.nbytes for chunk in self.chunks for array in chunk.values())


_held: dict[str, tuple[Bench, Gauge]] = {}
_measuring = threading.Lock()


def measure(bench: Callable[[], Bench], key: str, number: int, window: Sequence[Change]) -> dict[Hashable, float]:
    """`Gauge.measure` in a worker process, on the walk that the process keeps.

    The walk starts again where it has passed the window already.

    Args:
        bench: a function that gets the bench, called only when the process has none or needs to start again.
        key: key of the bench.
        number: index of the window.
        window: the changes of the window.
    """
    with _measuring:
        held = _held.get(key)
        if held is None or held[1].reached >= number:
            got = bench()
            model = Model(got.model)
            model.kinds = dict(got.kinds)
            walk = Walk(model, got.chunks, got.runtime, got.memory)
            _held.clear()
            held = _held[key] = got, Gauge(walk, got.confidence)
        got, gauge = held
        for tensor in got.cuts[gauge.reached + 1 : number]:
            gauge.advance(tensor)
        return gauge.measure(window)


def forget() -> None:
    """Free the bench and the walk that `measure` keeps in this process."""
    with _measuring:
        _held.clear()
