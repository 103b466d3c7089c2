"""Layers are grouped by what they bear: low rank, pruning, or both."""

from __future__ import annotations

from hmc_onnx.planning.hmc_groups import bearing, differences
from hmc_onnx.records.profile import GroupChoice, GroupProfile, LayerChoice, LayerProfile, Profile
from hmc_onnx.records.settings import Settings


def test_layers_are_grouped_by_what_they_bear() -> None:
    def layer(name: str, loss: float, group: str) -> LayerProfile:
        common = {"inputs": 0, "outputs": 0, "error": 0.0, "measured": True, "parameters": 1}
        choices = [
            LayerChoice(method="keep", rank=0, macs=100, sensitivity=0, **common),
            LayerChoice(method="svd", rank=1, macs=35, sensitivity=loss, **common),
        ]
        return LayerProfile(name=name, input_group=None, output_group=group, macs=100, parameters=1, choices=choices)

    losses = {"bears low rank": 0.01, "bears pruning": 1.0, "bears both": 0.1}
    groups = [
        GroupProfile(
            name=f"group of {name}",
            size=20,
            producers=[name],
            consumers=[],
            choices=[
                GroupChoice(keep=20, removed=[], sensitivity=0),
                GroupChoice(keep=7, removed=list(range(13)), sensitivity=0.1),
            ],
        )
        for name in losses
    ]
    profile = Profile(
        model="m",
        align=1,
        data="d",
        settings=Settings(),
        macs=300,
        parameters=3,
        groups=groups,
        layers=[layer(n, s, f"group of {n}") for n, s in losses.items()],
        declined={},
    )
    found = {name: bearing(d) for name, d in differences(profile).items()}
    assert found == {"bears low rank": "lowrank", "bears pruning": "prune", "bears both": "both"}
    assert bearing(None) == "keep"
