"""What a compressed file says of itself: complete, kept by all that changes the file, and the same from run to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import images, resnet

from calib.data.calibration import CalibrationData
from calib.measure.latency_table import Machine
from hmc_onnx.api import Provenance, Result, Settings, apply
from hmc_onnx.planning.solution import unchanged
from hmc_onnx.records.plan import PlannedLatency
from hmc_onnx.records.provenance import PREFIX, with_provenance
from hmc_onnx.run import Run
from passes.core.errors import ModelError
from passes.graph.files import load
from passes.graph.model import digest

DATA = CalibrationData({"input": images(16)}, None, "images")
MADE = Provenance(version="1", original="a", target="macs=0.5", precision="fp32", strategy="hmc", plan="b", batch=8)


def own_entries(proto: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props if p.key.startswith(PREFIX)}


def test_what_is_written_is_read() -> None:
    assert Provenance.read(resnet()) is None
    made = MADE.model_copy(update={"finetuned": "2", "teacher": "c", "threads": 4, "provider": "cuda"})
    assert Provenance.read(with_provenance(resnet(), made)) == made
    assert own_entries(with_provenance(resnet(), MADE))["hmc_onnx.target"] == "macs=0.5"


def test_other_metadata_stay_and_an_earlier_provenance_goes() -> None:
    proto = resnet()
    proto.metadata_props.add(key="trained on", value="noise")
    twice = with_provenance(with_provenance(proto, MADE.model_copy(update={"teacher": "c"})), MADE)
    assert twice.metadata_props[0].key == "trained on"
    assert Provenance.read(twice) == MADE
    assert with_provenance(twice, None) == proto


def test_entries_of_a_later_version_are_passed_over_and_damaged_ones_refused() -> None:
    proto = with_provenance(resnet(), MADE)
    proto.metadata_props.add(key="hmc_onnx.mood", value="good")
    assert Provenance.read(proto) == MADE
    del proto.metadata_props[0]
    with pytest.raises(ModelError, match=r"'hmc_onnx\.version' is missing or not valid"):
        Provenance.read(proto)


@pytest.mark.parametrize("options", ["not JSON", "[" * 5000, "{}", "null", "[1, 2]", '["x"]', '["=1"]'])
def test_options_of_a_provider_that_cannot_be_are_refused(options: str) -> None:
    proto = with_provenance(resnet(), MADE)
    proto.metadata_props.add(key="hmc_onnx.provider_option", value=options)
    with pytest.raises(ModelError, match=r"metadata entry 'hmc_onnx\.provider_option' is missing or not valid"):
        Provenance.read(proto)


def test_a_run_records_its_plan_and_its_original_and_writes_the_same_twice() -> None:
    settings = Settings(samples=16, batch=4, threads=2, provider="cpu")
    results = []
    for _ in range(2):
        run = Run(resnet(), DATA, settings)
        plan = unchanged(run)
        results.append(apply(resnet(), plan, DATA))
    assert results[0].SerializeToString(deterministic=True) == results[1].SerializeToString(deterministic=True)
    made = Provenance.read(results[0])
    assert made is not None
    assert (made.original, made.target, made.strategy, made.precision) == (digest(resnet()), "none", "hmc", "fp32")
    assert (made.batch, made.provider, made.threads) == (4, "cpu", 2)
    assert own_entries(apply(resnet(), plan, DATA, metadata=False)) == {}


def test_the_digest_is_of_the_plan_as_it_is_saved(tmp_path: Path) -> None:
    plan = unchanged(Run(resnet(), DATA, Settings(samples=16)))
    plan.save(tmp_path / "plan.json")
    read = type(plan).load(tmp_path / "plan.json")
    assert Provenance.of_plan(read, "a", None) == Provenance.of_plan(plan, "a", None)
    other = plan.model_copy(update={"strategy": "prune"})
    assert Provenance.of_plan(other, "a", None).plan != Provenance.of_plan(plan, "a", None).plan


def test_a_plan_for_time_records_the_machine_that_it_was_timed_on() -> None:
    plan = unchanged(Run(resnet(), DATA, Settings(samples=16)))
    machine = Machine(processor="p", onnxruntime="1", provider="cuda", threads=3)
    timed = plan.model_copy(update={"latency": PlannedLatency(machine=machine, batch=8, expected=0.5)})
    made = Provenance.of_plan(timed, "a", None)
    assert (made.batch, made.provider, made.threads) == (8, "cuda", 3)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_the_precision_that_is_served_is_recorded(precision: str) -> None:
    run = Run(resnet(), DATA, Settings(samples=16, precision=precision))
    proto = with_provenance(resnet(), MADE)
    proto.metadata_props.add(key="trained on", value="noise")
    served = run.serve(proto)
    assert Provenance.read(served) == MADE.model_copy(update={"precision": precision})
    assert "trained on" in {p.key for p in served.metadata_props}


def test_fine_tuning_keeps_the_provenance_and_adds_to_it() -> None:
    from hmc_onnx.api import FineTuning, finetune

    teacher, student = resnet(), with_provenance(resnet(seed=1), MADE)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3, 8, 8)).astype(np.float32)
    options = FineTuning(epochs=1, batch_size=8, device="cpu")
    tuned = finetune(student, teacher, CalibrationData({"input": x}, None, "noise"), options=options)
    made = Provenance.read(tuned.model)
    assert made is not None and made.finetuned is not None and made.teacher == digest(teacher)
    assert made.model_copy(update={"finetuned": None, "teacher": None}) == MADE


def test_a_result_is_saved_with_or_without(tmp_path: Path) -> None:
    result = Result(with_provenance(resnet(), MADE), None, None, None)  # type: ignore[arg-type]
    result.save(tmp_path / "with.onnx")
    result.save(tmp_path / "without.onnx", metadata=False)
    assert Provenance.read(load(tmp_path / "with.onnx")) == MADE
    assert own_entries(load(tmp_path / "without.onnx")) == {}
