"""The page docs/options.md, made from the declarations of the options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hmc_onnx.cli.options import Group, OptionField, alternatives

__all__ = ["table"]

HEAD = """# Options

Made by `python -m hmc_onnx.cli.table > docs/options.md` from the records that declare the options.

The first column is the option on the command line; where it is empty, the option is for Python only. The second is its
name in a YAML file (`--config`), without the record before the point, and the field of the record in Python. What is
given on the command line goes before what the file says.
"""
NAMES: dict[Any, str] = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def table(groups: Sequence[Group] | None = None) -> str:
    """The options in tables of Markdown, one for each heading of the help.

    Args:
        groups: whose options are listed; default: all that there are.
    """
    if groups is None:
        from hmc_onnx.cli.groups import GROUPS

        groups = GROUPS
    panels: dict[str, list[str]] = {}
    for group in groups:
        rows = panels.setdefault(group.record.panel, [])
        for name, field in group.record.model_fields.items():
            rows.append(_row(OptionField(name, field, group.record)))
    parts = [HEAD]
    for panel, rows in panels.items():
        head = "| Command line | Python and YAML | Value | Default | |\n|---|---|---|---|---|\n"
        parts.append(f"## {panel}\n\n{head}" + "".join(rows))
    return "\n".join(parts)


def _row(own: OptionField) -> str:
    python = not own.record.__module__.startswith("hmc_onnx.cli.")
    name = f"`{own.record.__name__}.{own.name}`" if python else f"`{own.name}`"
    flags = ", ".join(f"`{flag}`" for flag in own.flags) if own.option.command_line else ""
    where = "" if own.option.file or not own.option.command_line else " *Not in a file.*"
    default = "required" if own.field.is_required() else own.default
    cells = (flags, name, _value(own), default, (own.field.description or "") + where)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _value(own: OptionField) -> str:
    """What a value may be: its type and bounds."""
    kind = own.type
    if get_origin(kind) is Literal:
        return alternatives(get_args(kind))
    if get_origin(kind) is list:
        return f"{NAMES[get_args(kind)[0]]}, may be repeated"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} {NAMES[get_args(kind)[0]]}s"
    bounds = [
        f"{words} {getattr(m, name):g}"
        for m in own.field.metadata
        for name, words in BOUNDS.items()
        if hasattr(m, name)
    ]
    return ", ".join([NAMES.get(kind, "function"), *bounds])


if __name__ == "__main__":
    print(table(), end="")
