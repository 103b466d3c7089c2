"""What the pictures of the report show, apart from how they are drawn."""

from __future__ import annotations

import pytest
from reports import comparison, report

from hmc_onnx.records.changes import Changes, ClassAccuracy
from hmc_onnx.records.comparison import Side
from hmc_onnx.records.pictures import TradeOffPoint
from hmc_onnx.reporting.drawing.trade_off import LINE, names_above
from hmc_onnx.reporting.pictures import MOST_CLASSES, class_picture, grouping, served_timing, trade_off
from hmc_onnx.reporting.run_report import run_report


def test_every_network_that_was_measured_is_a_point_at_the_planned_batch() -> None:
    shown = trade_off(report())
    assert shown is not None and (shown.measure, shown.batch) == ("top-1", 8)
    assert [(p.kind, p.time, pytest.approx(p.change)) for p in shown.points] == [
        ("original", 1.0, 0.0),
        ("quantised", 0.8, -0.005),
        ("visited", 0.69, -0.002),
        ("visited", 0.59, -0.012),
        ("result", 0.6, -0.01),
    ]


def test_the_result_has_the_interval_of_its_accuracy() -> None:
    interval = {"kl": {"low": 0, "high": 1}, "change": {"low": -0.02, "high": 0.002}}
    shown = trade_off(report(intervals=interval))
    assert shown is not None and shown.points[-1].change_uncertainty == pytest.approx(0.011)


def test_names_of_points_that_lie_on_each_other_are_written_above_each_other() -> None:
    points = [TradeOffPoint(name=str(i), kind="result", time=0.5, change=0.0) for i in range(3)]
    apart = TradeOffPoint(name="apart", kind="original", time=0.9, change=0.0)
    up = {p.name: up for p, up in names_above([*points, apart], 0.1)}
    assert up["apart"] == 0
    assert sorted(up[str(i)] for i in range(3)) == [0, pytest.approx(LINE), pytest.approx(2 * LINE)]


def test_without_labels_the_loss_is_the_share_of_images_of_another_class() -> None:
    side = Side(macs=1, parameters=1, bytes=1, top1=None)
    shown = trade_off(report(a=side, b=side, curve=[], unchanged=None))
    assert shown is not None and shown.measure == "same class"
    assert [p.change for p in shown.points] == [0.0, pytest.approx(-0.03)]


def test_a_network_that_chooses_no_class_has_no_such_picture() -> None:
    side = Side(macs=1, parameters=1, bytes=1, top1=None)
    assert trade_off(report(a=side, b=side, agreement=None)) is None


def test_two_models_that_are_only_compared_are_timed_at_the_first_batch() -> None:
    timing = served_timing(run_report(comparison()))
    assert timing is not None and timing.batch == 1


def test_layers_are_placed_by_both_sensitivities_and_others_counted() -> None:
    own = report()
    one_kind = own.layers[0].model_copy(update={"lowrank": None})
    shown = grouping(own.model_copy(update={"layers": [one_kind, *own.layers[1:]]}))
    assert shown is not None and shown.others == 1
    assert [(p.name, p.layer, p.bears) for p in shown.points] == [("layer1", 1, "prune"), ("layer2", 2, "lowrank")]
    assert shown.points[0].pruning == own.layers[1].pruning


def test_classes_come_from_the_largest_loss_to_the_largest_gain() -> None:
    shown = class_picture(report())
    assert shown is not None and [row.name for row in shown.rows] == ["dog", "cat <&>"]


def test_of_many_classes_those_that_changed_most_at_both_ends_are_shown() -> None:
    many = [ClassAccuracy(label=i, images=1, before=0.5, after=i / 1000) for i in range(1000)]
    shown = class_picture(report(changes=Changes(classes=many)))
    assert shown is not None and shown.left_out == 1000 - MOST_CLASSES
    assert [row.name for row in shown.rows] == [str(i) for i in [*range(15), *range(985, 1000)]]
