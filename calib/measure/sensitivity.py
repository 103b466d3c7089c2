"""Sensitivity: how far the network's output moves when some of its weights are replaced.

Measured as the divergence of the outputs from the original's (`calib.measure.divergence`), over calibration images and
without labels; of class scores at a temperature at which the original is not too sure of any. Only the part of the
graph behind the change runs, on activations held from one walk over the graph, and one session serves every value that
is tried for the same weights, and for those close by.

Few images first. The options of one change are compared by what they cost: only those on the lower convex hull of
sensitivity over cost are ever of use to a planner who mixes many changes, and an option that lies above the line
between two others, by more than chance would have it, keeps what the first images gave. So does one that is known well
enough: sensitivities on images that were trained on, however many, tell those on others to a factor
of 1.7 or so (ResNet-56; `benchmarks/sensitivity.py`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from scipy.special import ndtri

from calib.measure.divergence import divergences, settled, temperature
from calib.measure.walk import Tail, Walk
from calib.runtime.sessions import CPU, Runtime
from passes.core.errors import ModelError
from passes.core.progress import Progress, silent
from passes.graph.model import Model
from passes.graph.outputs import Kind
from passes.graph.protos import byte_size

__all__ = ["Bench", "Change", "Gauge", "cut", "forget", "measure", "sensitivities", "windows"]

# Share of the nodes behind a cut that are run again for changes further on, to save the building of sessions. What
# may be changed is not constant to onnxruntime either, which keeps it from the fastest kernels.
WINDOW = 0.05
# Share of the images that all options are run on, and that of those still open are added at a time.
FIRST = 0.25
# An option is known when its standard error over so many images or more is at most this share of it.
KNOWN, KNOWN_IMAGES = 0.3, 32

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Change:
    """Initializers that are replaced together, and the values to try for them.

    Attributes:
        tensor: name of the first tensor, in graph order, that a node with such an initializer reads.
        position: of that node in the graph.
        initializers: their names.
        options: for each key, what makes the values, by initializer name.
        costs: of the options, as shares of what no change costs; without them no option is out early.
    """

    tensor: str
    position: int
    initializers: tuple[str, ...]
    options: Mapping[Hashable, Callable[[], Values]]
    costs: Mapping[Hashable, float] = field(default_factory=dict)

    def made(self) -> Change:
        """With all values made, to be sent away."""
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
        confidence: with which an option must be known to be out before it is; None: none ever is.

    Raises:
        ModelError: the network's output is not a number.
    """

    def __init__(self, walk: Walk, confidence: float | None = None) -> None:
        self.walk = walk
        self.reached = -1  # number of the window that it is at
        self._confidence = confidence
        tail = walk.tail([])
        self._reference = tail.outputs({})
        self._judged = settled(tail.judged, self._reference, walk.images)
        if all(output.kind == "other" for output in self._judged):
            what = ", ".join(f"'{output.name}': {output.what}" for output in self._judged)
            raise ModelError(f"the model has no output that can be compared ({what}): export one of a fixed size, too")
        if any(np.isnan(chunk).any() for output in self._reference for chunk in output):
            raise ModelError(
                "the model's output is NaN on some calibration images: "
                "check its weights, and that the images are preprocessed as for training"
            )
        first = self._judged[0]
        self._heat = temperature(self._reference[0], first, walk.images) if first.classes else 1.0
        self._first = math.ceil(len(walk.chunks) * FIRST)

    def advance(self, tensor: str) -> None:
        """Go on to the next window, which begins at a tensor."""
        self.walk.advance([tensor])
        self.reached += 1

    def measure(self, window: Sequence[Change], done: Callable[[], None] = lambda: None) -> dict[Hashable, float]:
        """Nats by option key, for changes that share a session."""
        self.advance(cut(window))
        tail = self.walk.tail([name for change in window for name in change.initializers])
        results: dict[Hashable, float] = {}
        for change in window:
            all_, few = len(self.walk.chunks), change.costs and self._confidence is not None
            step = self._first if few else all_
            nats: dict[Hashable, np.ndarray] = {}
            for start in range(0, all_, step):
                for key in _open(change.costs, nats, self._confidence or 0.0) if nats else change.options:
                    found = self._divergences(tail, change.options[key](), slice(start, start + step))
                    nats[key] = np.concatenate([nats.get(key, found[:0]), found])
                    if start == 0:
                        done()
            results |= {key: max(float(n.mean()), 0.0) for key, n in nats.items()}
        return results

    def _divergences(self, tail: Tail, values: Values, chunks: slice) -> np.ndarray:
        return divergences(
            [output[chunks] for output in self._reference],
            tail.outputs(values, chunks),
            self._reference,
            self._heat,
            self._judged,
            self.walk.images[chunks],
        )


def _open(costs: Mapping[Hashable, float], nats: Mapping[Hashable, np.ndarray], confidence: float) -> list[Hashable]:
    """The options to go on with: seen on all images until now, neither out nor known."""
    most = max(map(len, nats.values()))
    going = [key for key, own in nats.items() if len(own) == most and not _known(own)]
    return [key for key in going if not _out(key, costs, nats, confidence)]


def _known(nats: np.ndarray) -> bool:
    return len(nats) >= KNOWN_IMAGES and bool(nats.std() <= KNOWN * nats.mean() * math.sqrt(len(nats)))


def _out(
    key: Hashable, costs: Mapping[Hashable, float], nats: Mapping[Hashable, np.ndarray], confidence: float
) -> bool:
    """Whether an option lies above the lower convex hull of sensitivity over cost, of which no change is a part.

    It is out if it lies above one that costs no more, or above the line between a cheaper and a dearer one, by more
    than the standard error of that distance, over the images that all of them have, times the confidence's quantile.
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
    """Nats by option key, for all changes; the walk must be at the start of its graph.

    Raises:
        ModelError: the network's output is not a number.
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
    """Changes in graph order that share a session: it begins where the first of them does.

    Args:
        changes: those without options are left out.
        nodes: number of nodes of the graph.
        most: options in a window, if it has more than one change.
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
    """All that measuring takes, to be sent to each worker once.

    Attributes:
        key: of the bench: workers keep what they have made of it.
        model: the graph.
        chunks: calibration images, as one feed a chunk.
        cuts: where the windows begin. Each worker goes through all of them, so that all round alike.
        runtime: how to run it.
        confidence: as for `Gauge`.
        memory: bytes of activations that one worker may hold in memory.
        kinds: what the user says that outputs are, by name.
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
    """`Gauge.measure` in a worker process, on the walk that it keeps; begun anew where that is past the window.

    Args:
        bench: what gets it.
        key: of the bench.
        number: of the window.
        window: changes that share a session.
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
    """Let go of the bench, and of the walk, that `measure` keeps in this process."""
    with _measuring:
        _held.clear()
