"""Finds the fastest network whose loss of accuracy stays within a bound, by bisection of the budget on its time.

The loss is measured on images that no repair has used. The fastest network within the bound must keep it on a third set
of images, too, which the search has not used; otherwise the next slower network is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calib.data.calibration import CalibrationData, length
from calib.measure.divergence import choices, settled
from calib.runtime.batching import at_once, declared_batch
from calib.runtime.sessions import Runtime
from hmc_onnx.comparison.judging import Judged, labelled, predictions
from hmc_onnx.execution.context import Context
from hmc_onnx.planning.planner import Planner
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.records.comparison import Verification, Visited
from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import Plan
from hmc_onnx.rewriting.applying import apply
from passes.core.errors import SettingsError

__all__ = ["Found", "Search"]

# Upper bound on the budgets to try, the first budget, and the width of the interval at which the search ends.
MOST_VISITS, FIRST, CLOSE = 7, 0.6, 0.02
AT_ONCE = 128  # batch size


@dataclass(frozen=True)
class Found:
    """The network that was found, its plan and, where it was searched for, what that went by.

    Attributes:
        model: the network, in float.
        plan: its plan.
        max_drop: the bound on the loss.
        curve: all networks that were tried, fastest first.
    """

    model: onnx.ModelProto
    plan: Plan
    max_drop: float | None = None
    curve: Sequence[Visited] = ()

    def noted_in(self, report: Verification) -> Verification:
        """A comparison of the network, with what the search went by."""
        return report.model_copy(update={"max_drop": self.max_drop, "curve": list(self.curve)})


class Search:
    """Looks for the fastest network whose loss is within a bound.

    Args:
        context: the run, whose data are the images to calibrate with.
        planner: makes the plans.
        images: images held back from calibration. A random half is to search with, and the other to confirm with. With
            labels, the loss is the drop of top-1 accuracy; without, it is the share of images whose class changes.
        name: name of the planner's strategy, under which the checkpoint keeps what was visited.
    """

    def __init__(self, context: Context, planner: Planner, images: CalibrationData, name: str) -> None:
        self._context, self._planner, self._name = context, planner, name
        self._digest = images.digest()
        halves = images.split(len(images) // 2, context.settings.seed)
        self._judges = [_Judge(context.served, half, context.runtime, context.settings.judge) for half in halves]

    def run(self, max_drop: float) -> Found:
        """The fastest network whose loss is within the bound on both held-out sets.

        Args:
            max_drop: the bound on the loss, from 0 to 1.

        Raises:
            SettingsError: no network within the bound is faster than the original.
        """
        visited: list[tuple[Visited, Plan, onnx.ModelProto | None]] = []
        low, high = 0.0, 1.0
        first = self._original()
        if first is not None:
            visited.append((*first, None))
            high = min(high, first[0].latency) if first[0].drop <= max_drop else high
        share = round(high * FIRST, 3)
        for visit in range(MOST_VISITS):
            self._context.progress("search", visit, MOST_VISITS)
            point, plan, compressed = self._visited(share, f"{max_drop!r} {share!r} {self._digest}")
            if point is not None and plan is not None:
                visited.append((point, plan, compressed))
            if point is None or point.drop > max_drop:
                low = share
            else:
                high = min(share, point.latency)
            if high - low < CLOSE:
                break
            share = round((low + high) / 2, 3) if low else round(high * FIRST, 3)
        self._context.progress("search", MOST_VISITS, MOST_VISITS)
        visited.sort(key=lambda visit: visit[0].latency)
        faster = [(i, max(p.drop, p.confirmed)) for i, (p, *_) in enumerate(visited) if p.latency < 1]
        if not faster:
            raise SettingsError(
                f"no network is faster on this machine than the original in float32, whatever it loses: "
                f"give another `precision` than {self._context.settings.precision}, or another `batch`"
            )
        chosen = next((i for i, loss in faster if loss <= max_drop), None)
        if chosen is None:
            least = min(loss for _, loss in faster)
            raise SettingsError(
                f"no faster network was found that loses at most {max_drop:g}, the least that was tried loses "
                f"{least:.4f}: allow more, or calibrate on more images"
            )
        curve = [p.model_copy(update={"chosen": i == chosen}) for i, (p, *_) in enumerate(visited)]
        _, plan, model = visited[chosen]
        return Found(model or apply(self._context, plan), plan, max_drop, curve)

    def _original(self) -> tuple[Visited, Plan] | None:
        """The original in the precision that is served, with nothing else done to it; None where it is served as it is.

        So the search is never behind what a quantiser alone gives.
        """
        context, times = self._context, self._planner.latency
        if context.settings.precision == "fp32" or times is None or times.unchanged is None:
            return None
        checkpoint, key = context.checkpoint, f"visited/original {self._digest}"
        if key in checkpoint:
            return checkpoint.load(key)
        share = times.unchanged / times.seconds
        found = self._point(share, share, context.served_alone), unchanged(context)
        checkpoint.save(key, found)
        return found

    def _visited(self, share: float, key: str) -> tuple[Visited | None, Plan | None, onnx.ModelProto | None]:
        """A network for a share of the time; the model is None if the result comes from the checkpoint."""
        checkpoint, key = self._context.checkpoint, f"visited/{self._name} {key}"
        if key in checkpoint:
            return *checkpoint.load(key), None
        point, plan, compressed = self._visit(share)
        checkpoint.save(key, (point, plan))
        return point, plan, compressed

    def _visit(self, share: float) -> tuple[Visited | None, Plan | None, onnx.ModelProto | None]:
        try:
            # one plan without correction, because the search uses the measured time and not the budget
            plan = self._planner.plan(Target(latency=share), most=1)
        except SettingsError:  # the budget is out of reach
            return None, None, None
        compressed = apply(self._context, plan)
        served = self._context.served_form(compressed, in_float=plan.in_float)
        assert plan.latency is not None
        latency = plan.latency.expected if plan.latency.measured is None else plan.latency.measured
        return self._point(share, latency, served), plan, compressed

    def _point(self, target: float, latency: float, served: onnx.ModelProto) -> Visited:
        """What a network comes to that was planned for the share `target` and takes the share `latency`."""
        (drop, _), (confirmed, uncertainty) = (judge.drop(served) for judge in self._judges)
        return Visited(
            target=target, latency=latency, drop=drop, confirmed=confirmed, uncertainty=uncertainty, chosen=False
        )


class _Judge:
    """Measures a network's loss against the original on some images: top-1 drop with labels, else disagreement."""

    def __init__(
        self, original: onnx.ModelProto, images: CalibrationData, runtime: Runtime, outputs: Sequence[str]
    ) -> None:
        self._runtime, self._images, self._said = runtime, images, outputs
        size = declared_batch(original, images.feeds)
        self._chunks = [feeds for feeds, _ in images.chunks(size or at_once(images.feeds, AT_ONCE))]
        if size and length(self._chunks[-1]) < size:
            self._chunks.pop()
        self._counts = [length(feeds) for feeds in self._chunks]
        self._original = Judged(original, runtime, outputs)
        answers = self._original.batches(self._chunks)
        self._outputs = settled(self._original.outputs, answers, self._counts)
        self._at, self._labelled = 0, False
        if images.labels is not None:
            first = [batches[0] for batches in answers]
            at = labelled(self._outputs, first, self._counts[0], images.labels, images.source)
            self._at, self._labelled = at or 0, at is not None
        self._own = self._chosen(answers[self._at])
        known = images.labels if self._labelled else None
        self._right = self._own if known is None else known[: sum(self._counts), None]

    def drop(self, proto: onnx.ModelProto) -> tuple[float, float]:
        """The loss of a network (negative if it is better than the original), and the half-width of its 95 % interval.

        The interval is computed as if one more image had changed, because no change on few images proves little.
        """
        judged = Judged(proto, self._runtime, self._said, self._original)
        at = [o.name for o in judged.outputs].index(self._outputs[self._at].name)
        chosen = self._chosen(judged.batches(self._chunks)[at])
        lost = ((self._own == self._right).astype(float) - (chosen == self._right)).mean(1)
        return float(lost.mean()), float(1.96 * np.sqrt((lost**2).sum() + 1) / len(lost))

    def _chosen(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """The predicted classes, int (N, places)."""
        output = self._outputs[self._at]
        if self._labelled:
            return predictions(output, batches, self._counts)[:, None]
        return choices(output, batches, self._counts)
