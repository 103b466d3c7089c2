"""What a run is asked for: a target, or a bound on the loss."""

from __future__ import annotations

import pytest

import hmc_onnx
from hmc_onnx.records.goal import Target
from passes.core.errors import SettingsError


@pytest.mark.parametrize(
    "text",
    ["0.5", "macs", "flops=0.5", "macs=half", "macs=0", "macs=1.5", "macs=-1", "params=nan", "macs=0.5,macs=0.6"],
)
def test_a_target_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(hmc_onnx.HmcError, match="target"):
        hmc_onnx.parse_target(text)


def test_a_goal_is_a_target_or_a_bound() -> None:
    with pytest.raises(SettingsError, match="`target` and `max_drop` were both given"):
        hmc_onnx.Goal(target=Target(macs=0.5), max_drop=0.1)
    with pytest.raises(SettingsError, match="there is no goal: give `target`"):
        hmc_onnx.Goal()
    with pytest.raises(SettingsError, match=r"`max_drop` 1\.5: input should be less than 1"):
        hmc_onnx.Goal.of("max_drop=1.5")
    assert hmc_onnx.Goal.of("max_drop = 0.01").max_drop == 0.01
    assert hmc_onnx.Goal.of("macs=0.5").target == Target(macs=0.5)
