"""The report of a run holds what the plan, the profile and the comparison say, and keeps it as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import images, resnet
from reports import comparison, profile_and_plan, report

import hmc_onnx
from calib.data.calibration import CalibrationData
from hmc_onnx.analysis.find_compressible import find_compressible
from hmc_onnx.finetune.options import Epoch
from hmc_onnx.planning.hmc_groups import differences, sensitivities
from hmc_onnx.records.plan import LayerPlan
from hmc_onnx.records.report import LayerReport, RunReport
from hmc_onnx.reporting.run_report import ADVICE, NO_ADVICE, left_alone, run_report
from passes.core.declined import Declined, Why
from passes.core.errors import PlanError
from passes.graph.shapes import batch_one
from passes.normal_form.normalise import normalise


def chosen(layer: LayerReport) -> dict[str, list[int]]:
    """Sizes that are marked as chosen, by curve."""
    return {curve.kind: [p.size for p in curve.points if p.chosen] for curve in layer.curves}


def test_the_fields_of_a_comparison_come_first_and_are_the_same_bytes() -> None:
    checked = comparison()
    plain, whole = checked.model_dump_json(indent=1), report().model_dump_json(indent=1)
    assert whole.startswith(plain[: -len("\n}")] + ",")
    assert list(json.loads(whole))[len(json.loads(plain)) :] == [
        "plan", "layers", "left_alone", "epochs", "provenance",
    ]  # fmt: skip


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    report().save(tmp_path / "run.json")
    assert RunReport.load(tmp_path / "run.json") == report()


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    checked = comparison(changes=None)
    checked.save(tmp_path / "old.json")
    assert "changes" not in json.loads((tmp_path / "old.json").read_text())
    assert RunReport.load(tmp_path / "old.json").a == checked.a


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    profile_and_plan()[1].save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="is not a report of a run"):
        RunReport.load(tmp_path / "plan.json")


def test_times_that_the_plan_does_not_say_are_those_that_were_measured_for_the_report() -> None:
    profile, plan = profile_and_plan()
    untimed = {name: step.model_copy(update={"seconds": None}) for name, step in plan.layers.items()}
    made = run_report(
        comparison(), plan.model_copy(update={"layers": untimed}), profile, seconds={"layer1": (0.002, 0.001)}
    )
    assert [layer.milliseconds for layer in made.layers] == [None, (2.0, 1.0), None]


def test_each_layer_has_its_costs_channels_and_reason() -> None:
    _, second, third = report().layers
    assert second.macs == (100, 50) and second.milliseconds == (1.0, 0.5)
    assert (second.inputs, second.outputs) == ((8, 8), (8, 4))
    assert second.pruned and not second.decomposed
    assert third.inputs == (8, 4) and third.outputs is None
    assert (third.method, third.rank, third.reason) == ("svd", 4, "because of layer2")
    assert third.pruned and third.decomposed


def test_curves_hold_every_candidate_and_mark_the_choice() -> None:
    first, second, third = report().layers
    assert chosen(first) == {"pruned outputs": [8], "svd": [], "cp": []}
    assert chosen(second) == {"pruned inputs": [8], "pruned outputs": [4], "svd": [], "cp": []}
    assert chosen(third) == {"pruned inputs": [4], "svd": [4], "cp": []}
    pruning, svd, _ = third.curves
    assert [(p.share, p.sensitivity) for p in pruning.points] == [(0.5, 0.04), (0.75, 0.02), (1.0, 0.0)]
    assert [(p.share, p.size, p.sensitivity) for p in svd.points] == [
        (0.2, 2, 0.01),
        (0.4, 4, 0.005),
        (0.6, 6, 0.02 / 6),
    ]


def test_a_decomposition_chosen_with_pruning_is_added_to_its_curve() -> None:
    profile, plan = profile_and_plan()
    both = LayerPlan(method="cp", rank=3, bears="both", macs=15, parameters=7, sensitivity=0.007, reason="both")
    plan = plan.model_copy(update={"layers": plan.layers | {"layer2": both}})
    own = run_report(comparison(), plan, profile).layers[2]
    assert chosen(own)["cp"] == [3]
    assert next((p.share, p.sensitivity) for p in own.curves[-1].points if p.chosen) == (0.15, 0.007)


def test_sensitivities_are_those_of_which_the_preference_is_made() -> None:
    profile, _ = profile_and_plan()
    found = sensitivities(profile)
    for name, difference in differences(profile).items():
        prune, lowrank = found[name]
        assert prune is not None and lowrank is not None and difference is not None
        assert np.sign(prune - lowrank) == np.sign(difference)


def test_what_is_left_alone_is_gathered_by_reason_with_advice() -> None:
    (own,) = report().left_alone
    assert own.names == ["channels of fc", "channels of head"]
    assert "output" in own.advice
    assert left_alone({"x": Declined("x", Why.CHANNELS, "it is so")})[0].advice == NO_ADVICE


def test_each_kind_of_reason_has_its_advice() -> None:
    general = {Why.CHANNELS, Why.UNSAID}
    never_in_a_report = {Why.KERNEL}  # a reason for one decomposition and not for all
    assert set(Why) - general - never_in_a_report == set(ADVICE)


def test_what_is_left_alone_for_the_same_reason_is_told_together() -> None:
    sizes = {name: Declined(name, Why.UNKNOWN_SIZE, "its size is not known") for name in ("a", "b")}
    found = left_alone(sizes | {"c": Declined("c", Why.NESTED, "it is inside If node 'x'")})
    assert [own.names for own in found] == [["a", "b"], ["c"]]
    assert "fixed input height" in found[0].advice and "control flow" in found[1].advice


def test_the_reasons_of_a_real_network_have_advice_of_their_own() -> None:
    model = normalise(resnet((1, 1), (8, 16), shortcut="A"))
    found = left_alone(find_compressible(model, batch_one(model)).declined)
    assert found and all(own.advice != NO_ADVICE for own in found)


def test_epochs_are_kept() -> None:
    epoch = Epoch(epoch=1, loss=0.5, held=0.4, top1=0.9, seconds=60)
    assert run_report(comparison(), epochs=[epoch]).epochs[0].model_dump() == epoch.model_dump()


@pytest.mark.usefixtures("few_iterations", "few_candidates")
def test_a_real_run_gives_a_layer_for_each_that_was_planned() -> None:
    data = CalibrationData({"input": images(48)}, np.arange(48) % 5, "noise")
    settings = hmc_onnx.Settings(samples=48, kl_samples=16, chunk=16, align=2)
    result = hmc_onnx.compress(resnet((1, 1), (8, 16)), data, "macs=0.6", settings=settings)
    whole = run_report(result.report, result.plan, result.profile)
    assert [layer.name for layer in whole.layers] == list(result.plan.layers)
    assert sum(layer.macs[1] for layer in whole.layers) == result.plan.macs <= 0.6 * whole.a.macs
    for layer in whole.layers:
        marks = chosen(layer)
        assert layer.removed or layer.rank == 0 or layer.rank in marks[layer.method]
        assert all(len(own) == 1 for kind, own in marks.items() if kind.startswith("pruned"))
    assert whole.changes is not None
    assert sum(c.images for c in whole.changes.classes) == 48
    assert whole.changes.changed == round(48 * (1 - (whole.agreement or 0)))
