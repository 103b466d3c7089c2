"""The YAML file of `--config`: options by their names, of the types that the records declare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from hmc_onnx.cli.options import Group, OptionField, alternatives
from hmc_onnx.records.options import did_you_mean
from passes.core.errors import SettingsError
from passes.core.paths import expanded

__all__ = ["merged", "read_config"]

# What to write for a value of a type.
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
}


def merged(values: Mapping[str, Any], groups: Sequence[Group] | None = None) -> dict[str, Any]:
    """What the command line gave, over what the file that it names under `config` holds; ~ in paths is replaced.

    Args:
        values: by option; None where an option was not given.
        groups: that a file may hold options of; default: those of all commands, as several commands may share a file.

    Raises:
        SettingsError: the file cannot be read, or holds something else than options; or a path begins with the home of
            a user that is not known.
    """
    if groups is None:
        from hmc_onnx.cli.groups import GROUPS

        groups = GROUPS
    given = {name: value for name, value in values.items() if value is not None and value != []}
    every = (read_config(given["config"], groups) if given.get("config") else {}) | given
    paths = {name: value for name, value in every.items() if isinstance(value, Path)}
    return every | {name: expanded(path, f"`{name}`", SettingsError) for name, path in paths.items()}


def read_config(path: Path, groups: Sequence[Group]) -> dict[str, Any]:
    """The options of a file; raises as `merged`."""
    every = {field.name: field for group in groups for field in group}
    fields = {name: field for name, field in every.items() if field.option.file}
    found: dict[str, Any] = {}
    for name, value in _read_yaml(path).items():
        if name in every and name not in fields:
            raise SettingsError(
                f"'{path}' has the option '{name}', which a file cannot hold: give `{name}` in the call"
            )
        if name not in fields:
            raise SettingsError(f"'{path}' has an unknown option '{name}'{did_you_mean(name, list(fields))}")
        if value is not None:
            found[name] = _checked(fields[name], value, path)
    return found


def _checked(field: OptionField, value: Any, path: Path) -> Any:
    """A value in the type of its option. JSON is checked strictly but knows no tuples and paths, as YAML does not."""
    try:
        return TypeAdapter(field.type).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as e:  # the latter for what JSON has not, such as dates
        raise SettingsError(f"'{path}' has {value!r} for the option '{field.name}': write {_words(field)}") from e


def _words(field: OptionField) -> str:
    kind, example = field.type, field.option.example
    if get_origin(kind) is Literal:
        return alternatives(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} {WORDS[get_args(kind)[0]].removeprefix('a ')}s in brackets, as in {example}"
    if get_origin(kind) is list:
        of = " of numbers" if get_args(kind)[0] in (int, float) else ""
        return f"a list{of}{f', as in {example}' if example else ''}"
    return f"{WORDS[kind]}{f' such as {example}' if example else ''}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(
            f"cannot read the settings '{path}' ({getattr(e, 'strerror', None) or e}): give a YAML file"
        ) from e
    except yaml.YAMLError as e:
        raise SettingsError(
            f"'{path}' is not valid YAML ({' '.join(str(e).split())}): write one 'name: value' a line"
        ) from e
    if not isinstance(content, dict):
        raise SettingsError(f"'{path}' holds no options: write one 'name: value' a line")
    return {str(k).replace("-", "_"): v for k, v in content.items()}
