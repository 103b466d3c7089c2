"""Makes the records of what the pictures show from the report of a run."""

from __future__ import annotations

from hmc_onnx.records.changes import Changes
from hmc_onnx.records.comparison import Timing
from hmc_onnx.records.pictures import ClassPicture, ClassRow, Grouping, GroupingPoint, TradeOff, TradeOffPoint
from hmc_onnx.records.report import RunReport

__all__ = ["MOST_CLASSES", "class_name", "class_picture", "grouping", "served_timing", "trade_off"]

# Classes that the picture shows; of more, those whose accuracy changed most.
MOST_CLASSES = 30


def served_timing(report: RunReport) -> Timing | None:
    """The times at the batch that the network was planned for; else at the first that was measured."""
    plan = report.plan
    batch = None if plan is None else plan.latency.batch if plan.latency else plan.settings.batch
    timings = {t.batch: t for t in report.timings}
    return timings.get(batch or 0) or next(iter(report.timings), None)


def trade_off(report: RunReport) -> TradeOff | None:
    """Accuracy over time of every network that was measured; None where the model chooses no classes."""
    timing = served_timing(report)
    labelled = report.a.top1 is not None and report.b.top1 is not None
    if timing is None or (not labelled and report.agreement is None):
        return None
    points = [
        TradeOffPoint(name="original", kind="original", time=1.0, change=0.0, detail=_detail(timing.a, report.a.top1))
    ]
    alone = report.unchanged
    if alone is not None:
        change = _change(report.a.top1, alone.top1, alone.agreement)
        times = {t.batch: t for t in alone.timings}
        if change is not None and timing.batch in times:
            own = times[timing.batch]
            points.append(
                TradeOffPoint(
                    name=f"{alone.precision} alone",
                    kind="quantised",
                    time=own.ratio,
                    time_uncertainty=own.uncertainty,
                    change=change,
                    detail=_detail(own.b, alone.top1),
                )
            )
    for visited in report.curve:
        points.append(
            TradeOffPoint(
                name=f"visited, for {visited.target:.2f} of the time",
                kind="visited",
                time=visited.latency,
                change=-visited.confirmed,
                change_uncertainty=visited.uncertainty,
                detail="taken" if visited.chosen else "",
            )
        )
    change = _change(report.a.top1, report.b.top1, report.agreement)
    assert change is not None
    known = report.shown_intervals
    within = None if known is None else known.change if labelled else known.agreement
    points.append(
        TradeOffPoint(
            name="compressed",
            kind="result",
            time=timing.ratio,
            time_uncertainty=timing.uncertainty,
            change=change,
            change_uncertainty=0.0 if within is None else (within.high - within.low) / 2,
            detail=_detail(timing.b, report.b.top1),
        )
    )
    return TradeOff(measure="top-1" if labelled else "same class", batch=timing.batch, points=points)


def _change(before: float | None, after: float | None, agreement: float | None) -> float | None:
    """Of the top-1; without labels, the share of images for which another class is chosen, below zero."""
    if before is not None and after is not None:
        return after - before
    return None if agreement is None else agreement - 1


def _detail(milliseconds: float, top1: float | None) -> str:
    return f"{milliseconds:.2f} ms" + ("" if top1 is None else f", top-1 {top1:.2%}")


def grouping(report: RunReport) -> Grouping | None:
    """The layers by their sensitivities to pruning and to low rank; None where none was measured for both."""
    points, others = [], 0
    for i, layer in enumerate(report.layers):
        if layer.pruning is None or layer.lowrank is None:
            others += layer.difference is not None
            continue
        points.append(
            GroupingPoint(name=layer.name, layer=i, pruning=layer.pruning, lowrank=layer.lowrank, bears=layer.bears)
        )
    return Grouping(points=points, others=others) if points else None


def class_picture(report: RunReport) -> ClassPicture | None:
    """Classes by the change of their accuracy; None where there are no labels."""
    if report.changes is None or not report.changes.classes:
        return None
    own = report.changes
    rows = [
        ClassRow(name=class_name(own, c.label), images=c.images, before=c.before, after=c.after) for c in own.classes
    ]
    rows.sort(key=lambda row: row.after - row.before)
    most_lost = MOST_CLASSES // 2
    shown = rows if len(rows) <= MOST_CLASSES else [*rows[:most_lost], *rows[most_lost - MOST_CLASSES :]]
    return ClassPicture(rows=shown, left_out=len(rows) - len(shown))


def class_name(changes: Changes, label: int) -> str:
    """What a class is called: the name of its folder, else its number."""
    return changes.names.get(label, str(label))
