"""The Olive pass, without Olive: its options, its entry for Olive, and the recipe; `.ci/olive` runs the recipe."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from hmc_onnx.cli.reading import settings_of
from hmc_onnx.olive.options import check_names, given_options, options
from hmc_onnx.olive.package_config import own_entry, package_config, with_entry
from hmc_onnx.records.goal import Goal, Strategy, Target
from hmc_onnx.records.settings import QUICK, Precision, Settings
from hmc_onnx.records.work import Work
from passes.core.errors import SettingsError

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "olive.json"


def test_the_options_are_the_fields_of_the_records_that_a_file_may_hold() -> None:
    found = options()
    for record in (Goal, Settings, Work):
        for name, field in record.model_fields.items():
            if name in found:
                assert found[name].field is field
    assert {"target", "max_drop", "strategy", "samples", "precision", "quick", "work_dir"} <= set(found)
    assert not {"latency", "fine", "progress", "dry_run", "config", "output"} & set(found)


def test_the_options_have_the_types_of_a_file() -> None:
    types = {name: option.type for name, option in options().items()}
    assert types["target"] is str and types["keep"] == list[str] and types["strategy"] == Strategy


def test_what_a_workflow_gives_makes_the_records() -> None:
    values = {"target": "macs=0.5", "keep": ["fc"], "samples": 7, "seed": None, "jobs": 2, "data_config": {}}
    given = given_options(values)
    assert given.of(Goal) == Goal(target=Target(macs=0.5))
    assert settings_of(given) == Settings(keep=("fc",), samples=7)
    assert given.of(Work) == Work(jobs=2)


@pytest.mark.parametrize(
    ("own", "served"), [(None, "CUDAExecutionProvider"), ("cpu", "cpu")], ids=["of the workflow", "of the pass"]
)
def test_the_provider_is_the_workflows_unless_the_pass_names_one(own: str | None, served: str) -> None:
    assert settings_of(given_options({"provider": own}, "CUDAExecutionProvider")).provider == served


def test_a_quick_run_leaves_what_was_given() -> None:
    quick = settings_of(given_options({"quick": True, "positions": None}))
    assert quick == Settings(**QUICK)
    assert settings_of(given_options({"quick": True, "samples": 100})).samples == 100


def test_an_unknown_name_is_refused() -> None:
    known = ["data_config", *options()]
    check_names(["target", "data_config"], known)
    with pytest.raises(SettingsError, match=r"\Athe pass HmcCompress has no option 'taget': did you mean 'target'\?\Z"):
        check_names(["taget"], known)


def test_the_entry_leads_to_the_pass() -> None:
    entry = own_entry()["passes"]["HmcCompress"]
    module, name = entry["module_path"].rsplit(".", 1)
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert name in {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    assert set(entry["supported_precisions"]) == set(get_args(Precision))


def test_the_entry_is_added_to_olives_own() -> None:
    olives = {"passes": {"Other": {"module_path": "a.B"}}, "extra_dependencies": {"cpu": ["onnxruntime"]}}
    found = with_entry(olives, own_entry())
    assert list(found["passes"]) == ["Other", "HmcCompress"]
    assert found["extra_dependencies"] == olives["extra_dependencies"]
    assert list(olives["passes"]) == ["Other"]


def test_without_olive_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "olive", None)  # an import of it fails
    says = r"\AOlive cannot be imported \(.*\): install this package's extra, as in pip install '\.\[cpu,olive\]'\Z"
    with pytest.raises(SettingsError, match=says):
        package_config()


@pytest.fixture
def recipe() -> dict[str, Any]:
    """The recipe of the examples."""
    return json.loads(RECIPE.read_text())


def test_the_recipe_gives_the_pass_options_that_it_has(recipe: dict[str, Any]) -> None:
    (own,) = recipe["passes"].values()
    assert own.pop("type") in own_entry()["passes"]
    assert own.pop("data_config") in {data["name"] for data in recipe["data_configs"]}
    check_names(own, options())
    assert given_options(own).of(Goal).target == Target(macs=0.5)


def test_the_recipe_names_what_there_is(recipe: dict[str, Any]) -> None:
    assert (ROOT / recipe["input_model"]["model_path"]).is_file()
    for data in recipe["data_configs"]:
        functions = {
            node.name: {own.arg for own in node.args.args}
            for node in ast.parse((ROOT / data["user_script"]).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        load = data["load_dataset_config"]
        assert set(load["params"]) <= functions[load["type"]]
        assert all((ROOT / load["params"][name]).is_file() for name in ("model", "data"))
        assert data.get("post_process_data_config", load)["type"] in functions
