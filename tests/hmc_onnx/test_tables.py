"""The tables of a plan say what their numbers mean, and whether the plan is proven to be the best."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hmc_onnx.records.goal import Target
from hmc_onnx.records.plan import LayerPlan, Plan
from hmc_onnx.records.settings import Settings
from hmc_onnx.reporting.tables import plan_tables


def shown(gap: float, width: int = 160) -> str:
    layer = LayerPlan(
        method="svd", rank=4, bears="lowrank", difference=0.4, macs=1234567, sensitivity=0.01, reason="it costs least"
    )
    plan = Plan(
        model="m", data="d", settings=Settings(), strategy="hmc", target=Target(macs=0.5), groups={},
        layers={"/layer1/conv": layer}, macs=1234567, parameters=1000, sensitivity=0.01, gap=gap,
    )  # fmt: skip
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(plan_tables(plan))
    return " ".join(console.export_text().replace("│", " ").split())


@pytest.mark.parametrize("gap", [0.0, 1e-5, 0.037])
def test_a_plan_that_is_not_proven_says_so(gap: float) -> None:
    said = "not proven to be the best plan: another may lose 3.7% less" in shown(gap)
    assert said == (gap == 0.037)


def test_what_a_layer_loses_least_by_is_explained_where_it_is_shown() -> None:
    wide, narrow = shown(0.0), shown(0.0, 60)
    assert "lowrank +0.40 svd" in wide
    assert "preference: by how much; -1 is all for pruning, +1 all for low rank" in wide
    assert "No room for: preference" in narrow and "1.235 M" in narrow
