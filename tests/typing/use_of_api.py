"""The Python interface as a typed program uses it. mypy checks this file in `make check`; nothing runs it."""

from __future__ import annotations

import onnx
from typing_extensions import assert_type

import hmc_onnx


def use(model: onnx.ModelProto, data: hmc_onnx.CalibrationData) -> None:
    """Each public name that is both a package and a function is a function here, and records have typed fields."""
    goal = hmc_onnx.Goal(target="latency=0.6", or_nearest=True)
    made = hmc_onnx.compress(
        model, data, goal, settings=hmc_onnx.Settings(samples=64), work=hmc_onnx.Work(work_dir="runs", jobs=2)
    )
    assert_type(made, hmc_onnx.Result)
    tuned = hmc_onnx.finetune(made.model, model, data, options=hmc_onnx.FineTuning(epochs=1))
    assert_type(tuned, hmc_onnx.FineTuned)
    assert_type(hmc_onnx.handoff(tuned.model, "triton", "repository"), list[str])
    assert_type(made.plan.layers["conv"], hmc_onnx.LayerPlan)
    assert_type(made.plan.declined["conv"].code, hmc_onnx.Why)
    assert_type(made.report.b, hmc_onnx.Side)
