"""The fastest network whose loss stays within a bound: budgets on the time are tried, halving the interval each time.

The loss is measured on images that no repair has seen; the network that is found must keep the bound on others still,
which the search has not seen either, or the next slower one is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from calib.data.calibration import CalibrationData
from calib.runtime.batching import at_once, declared_batch
from calib.runtime.sessions import Runtime
from hmc_onnx.comparison.verification import Visited, judged
from hmc_onnx.execution.checkpoint import Journal
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.settings import Target
from passes.core.errors import DataError, SettingsError
from passes.core.progress import Progress, silent

__all__ = ["Found", "Split", "search", "split"]

# Budgets that are tried, the first one, and how close two need not come.
MOST_VISITS, FIRST, CLOSE = 7, 0.6, 0.02
# Images to search with, and as many to confirm with, at most; and of all, where there are no more than the samples.
MOST_HELD, SHARE_HELD = 2000, 0.2
LEAST_HELD = 20
AT_ONCE = 128


@dataclass(frozen=True)
class Split:
    """Images to calibrate, to search and to confirm with: no image is in two."""

    calibration: CalibrationData
    search: CalibrationData
    confirm: CalibrationData


def split(data: CalibrationData, samples: int) -> Split:
    """The first `samples` images to calibrate with, the rest to search and to confirm with, half each.

    Where there are few more than `samples`, or none, a fifth of all is for each of these.

    Raises:
        DataError: there are too few images.
    """
    held = min((len(data) - samples) // 2, MOST_HELD)
    if held < SHARE_HELD * min(samples, len(data)):
        held = int(SHARE_HELD * len(data))
        samples = len(data) - 2 * held
    if held < LEAST_HELD:
        raise DataError(
            f"there are {len(data)} images, too few to search with: give {round(LEAST_HELD / SHARE_HELD)} or more"
        )
    calibration, rest = data.split(samples)
    searched, rest = rest.split(held)
    return Split(calibration, searched, rest.head(held))


@dataclass(frozen=True)
class Found:
    """The network that was found, its plan, and all that was visited on the way, fastest first."""

    model: onnx.ModelProto
    plan: Plan
    curve: list[Visited]


def search(
    original: onnx.ModelProto,
    plan_for: Callable[[Target], Plan],
    apply: Callable[[Plan], onnx.ModelProto],
    images: Split,
    max_drop: float,
    runtime: Runtime,
    journal: Journal,
    name: str,
    progress: Progress = silent,
) -> Found:
    """The fastest network whose loss is within the bound, on the search's images and on those to confirm with.

    Args:
        original: the model as it is served.
        plan_for: makes a plan for a target; raises SettingsError where none can be.
        apply: carries a plan out.
        images: see `Split`; with labels the loss is that of top-1, without the share of images whose class changes.
        max_drop: the bound, from 0 to 1.
        runtime: how to run the models.
        journal: keeps what was visited, under
        name: of the strategy.
        progress: called as the work goes on.

    Raises:
        SettingsError: no network within the bound is faster than the original.
    """
    judges = [_Judge(original, part, runtime) for part in (images.search, images.confirm)]
    visited: list[tuple[Visited, Plan, onnx.ModelProto | None]] = []
    low, high, share = 0.0, 1.0, FIRST
    for visit in range(MOST_VISITS):
        progress("search", visit, MOST_VISITS)
        key = f"visited/{name} {max_drop!r} {share!r} {images.search.digest()}"
        compressed = None
        if key in journal:
            point, plan = journal.load(key)
        else:
            point, plan, compressed = _visit(share, plan_for, apply, judges)
            journal.save(key, (point, plan))
        if point is not None:
            visited.append((point, plan, compressed))
        if point is None or point.drop > max_drop:
            low = share
        else:
            high = min(share, point.latency)
        if high - low < CLOSE:
            break
        share = round((low + high) / 2, 3) if low else round(high * FIRST, 3)
    progress("search", MOST_VISITS, MOST_VISITS)
    visited.sort(key=lambda visit: visit[0].latency)
    chosen = next((i for i, (p, *_) in enumerate(visited) if max(p.drop, p.confirmed) <= max_drop), None)
    if chosen is None:
        least = min((max(p.drop, p.confirmed) for p, *_ in visited), default=1.0)
        raise SettingsError(
            f"no faster network was found that loses at most {max_drop:g}, the least that was tried loses {least:.4f}: "
            "allow more, or calibrate on more images"
        )
    curve = [p.model_copy(update={"chosen": i == chosen}) for i, (p, *_) in enumerate(visited)]
    _, plan, model = visited[chosen]
    return Found(model or apply(plan), plan, curve)


def _visit(
    share: float, plan_for: Callable[[Target], Plan], apply: Callable[[Plan], onnx.ModelProto], judges: list[_Judge]
) -> tuple[Visited | None, Plan | None, onnx.ModelProto | None]:
    try:
        plan = plan_for(Target(latency=share))
    except SettingsError:  # below what can be reached
        return None, None, None
    compressed = apply(plan)
    assert plan.latency is not None
    latency = plan.latency.expected if plan.latency.measured is None else plan.latency.measured
    (drop, _), (confirmed, uncertainty) = (judge.drop(compressed) for judge in judges)
    visited = Visited(
        target=share, latency=latency, drop=drop, confirmed=confirmed, uncertainty=uncertainty, chosen=False
    )
    return visited, plan, compressed


class _Judge:
    """What a network loses against the original on some images: of top-1 where there are labels, else of agreement."""

    def __init__(self, original: onnx.ModelProto, images: CalibrationData, runtime: Runtime) -> None:
        self._runtime, self._images = runtime, images
        self._fixed = declared_batch(original, images.feeds)
        self._original = self._classes(original)
        labels = self._original if images.labels is None else images.labels[: len(self._original)]
        self._right = labels

    def drop(self, proto: onnx.ModelProto) -> tuple[float, float]:
        """From 0 to 1, below 0 where the network is better, and the half-width of its 95 % interval.

        One image more counts as changed than did, as of a few images that none has says little.
        """
        lost = (self._original == self._right).astype(float) - (self._classes(proto) == self._right)
        return float(lost.mean()), float(1.96 * np.sqrt((lost**2).sum() + 1) / len(lost))

    def _classes(self, proto: onnx.ModelProto) -> np.ndarray:
        session, names = judged(proto, self._runtime)
        found = []
        for feeds, _ in self._images.chunks(self._fixed or at_once(self._images.feeds, AT_ONCE)):
            if self._fixed and len(next(iter(feeds.values()))) < self._fixed:
                break
            (scores,) = session.run(feeds, names[:1])
            found.append(scores.reshape(len(scores), -1).argmax(1))
        return np.concatenate(found)
