"""The options of the Olive pass: those that a YAML file of `hmc-onnx compress` may hold of these groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hmc_onnx.cli.config import merged
from hmc_onnx.cli.groups import Quick
from hmc_onnx.cli.options import Given, Group, OptionField
from hmc_onnx.records.goal import Goal
from hmc_onnx.records.options import did_you_mean
from hmc_onnx.records.settings import Settings
from hmc_onnx.records.work import Work
from passes.core.errors import SettingsError

__all__ = ["check_names", "given_options", "options"]

# Whether times are measured follows from the goal.
GROUPS = (Group(Goal), Group(Settings, without=("latency",)), Group(Quick), Group(Work))


def options() -> dict[str, OptionField]:
    """What the pass takes besides its images, by name."""
    return {field.name: field for group in GROUPS for field in group if field.option.file}


def given_options(values: Mapping[str, Any], provider: str | None = None) -> Given:
    """What a workflow gives to the pass, to make the records `Goal`, `Settings` and `Work` of.

    Args:
        values: by name, None where an option was not given; what is no option is left out.
        provider: execution provider that the workflow is for; it serves where `values` name none.

    Raises:
        SettingsError: a path begins with the home of a user that is not known.
    """
    own = {name: values.get(name) for name in options()}
    if own["provider"] is None:
        own["provider"] = provider
    return Given(GROUPS, merged(own, GROUPS))


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise SettingsError for the first name that the pass does not know, as Olive would ignore it."""
    names = list(known)
    for name in given:
        if name not in names:
            raise SettingsError(f"the pass HmcCompress has no option '{name}'{did_you_mean(name, names)}")
