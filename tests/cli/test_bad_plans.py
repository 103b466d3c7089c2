"""Files that are no profiles or plans, and plans that the model cannot follow: one sentence, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Refuses

from hmc_onnx.records.plan import Plan

pytestmark = pytest.mark.usefixtures("few_iterations")


def test_files_that_are_no_profiles(refuses: Refuses, given: Path, steps: Path, here: Path) -> None:
    whole = (steps / "profile.json").read_text()
    (here / "half.json").write_text(whole[: len(whole) // 2])
    (here / "list.json").write_text("[]")
    (here / "empty.json").write_text("")
    (here / "version.json").write_text(whole.replace('"version": 1', '"version": 2', 1))
    (here / "more.json").write_text(json.dumps(json.loads(whole) | {"more": 1}))
    files = {
        "half.json": "is not a valid profile, as it is no JSON",
        "list.json": "is not a valid profile: at the file",
        "empty.json": "is not a valid profile, as it is no JSON",
        "version.json": "is not a valid profile: at version",
        "more.json": "is not a valid profile: at more",
        "nothing.json": "the profile 'nothing.json' does not exist",
        given: "cannot read the profile",
        given / "model.onnx": "is not a valid profile, as it is no text",
        steps / "plan.json": "plan.json' is not a valid profile",
    }
    for file, says in files.items():
        refuses("plan", file, "-o", "plan.json", "--target", "macs=0.6", says=(str(file), says))


@pytest.fixture
def apply(refuses: Refuses, given: Path) -> Refuses:
    """As `refuses`, for an `apply` of a plan."""

    def check(plan: object, *, says: str | tuple[str, ...], model: str = "model.onnx", data: str = "splits.npz") -> str:
        return refuses("apply", given / model, "--plan", plan, "--data", given / data, "-o", "out.onnx", says=says)

    return check


def test_files_that_are_no_plans(apply: Refuses, given: Path, steps: Path, here: Path) -> None:
    whole = (steps / "plan.json").read_text()
    (here / "half.json").write_text(whole[: len(whole) // 2])
    (here / "text.json").write_text("prune everything")
    (here / "rank.json").write_text(whole.replace('"rank": 0', '"rank": "all"', 1))
    apply("half.json", says="'half.json' is not a valid plan, as it is no JSON")
    apply("text.json", says="'text.json' is not a valid plan, as it is no JSON")
    apply("rank.json", says=("'rank.json' is not a valid plan: at layers.", ".rank, input should be a valid integer"))
    apply("nothing.json", says="the plan 'nothing.json' does not exist")
    apply(given, says="cannot read the plan")
    apply(given / "model.onnx", says="is not a valid plan, as it is no text")
    apply(steps / "profile.json", says="profile.json' is not a valid plan")


def test_a_plan_for_another_model_or_other_data(apply: Refuses, given: Path, steps: Path) -> None:
    apply(steps / "plan.json", model="other.onnx", says=("plan was made for another model", "plan again"))
    apply(steps / "plan.json", data="floats.npz", says=("made with other calibration data", "give the same images"))
    apply(steps / "plan.json", data="nothing.npz", says=("does not exist", "give an .npz or .npy file"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "magic", "rank": 1}, "unknown method 'magic', use svd"),
        ({"method": "svd", "rank": 10**6}, "svd has no rank 1000000: use a whole number from 1 to"),
        ({"method": "svd", "rank": 0}, "svd has no rank 0:"),
        ({"method": "svd", "rank": -1}, "svd has no rank -1:"),
    ],
)
def test_a_plan_edited_wrongly(apply: Refuses, steps: Path, here: Path, change: dict, says: str) -> None:
    plan = json.loads((steps / "plan.json").read_text())
    name = list(plan["layers"])[1]
    plan["layers"][name] |= change
    (here / "edited.json").write_text(json.dumps(plan))
    apply("edited.json", says=(f"layer '{name}'", says))


def test_a_plan_of_what_the_model_has_not(apply: Refuses, steps: Path, here: Path) -> None:
    plan = Plan.load(steps / "plan.json").model_dump()
    (name, group), *_ = plan["groups"].items()
    edits = {
        "the plan names a layer that the model does not have: '/none/Conv'": {
            "layers": plan["layers"] | {"/none/Conv": {"method": "keep"}}
        },
        "the plan names a channel group that the model does not have: 'none'": {
            "groups": {"none": {"size": 4, "removed": [0]}}
        },
        f"the plan's group '{name}' is of size {group['size'] + 1}, and the model's of {group['size']}: correct it": {
            "groups": {name: group | {"size": group["size"] + 1}}
        },
        f"the plan removes channels of '{name}' that it does not have": {
            "groups": {name: group | {"removed": [group["size"]]}}
        },
    }
    for says, edit in edits.items():
        (here / "edited.json").write_text(json.dumps(plan | edit))
        apply("edited.json", says=says)
