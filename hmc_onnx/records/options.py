"""Options: each is declared once, as a field of a record.

A field's name, type, bounds, default and description are the option. From them `hmc_onnx.cli.options` makes the options
of the commands, `hmc_onnx.cli.config` the check of a YAML file, and `hmc_onnx.cli.table` the page docs/options.md; in
Python the record itself is what a caller gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import ValidationError, model_validator

from passes.core.errors import SettingsError
from passes.core.records import Frozen

__all__ = ["Option", "Options", "did_you_mean"]


@dataclass(frozen=True)
class Option:
    """What the command line needs to know of a field besides its type, bounds, default and description.

    It is given as `Annotated[type, Option(...)]`, and only where something differs from what the type says.

    Attributes:
        given: the type of the value on the command line and in a YAML file, where the field's own type is richer.
        metavar: what stands for the value in the help.
        short: a short form, such as "-o".
        default: what happens where the option is left out, in words, for a field whose default is None.
        example: a value as it is written in a YAML file.
        negative: whether a flag can be taken back, as --no-NAME.
        command_line: whether the command line has the option; if not, the field is for Python only.
        file: whether a YAML file may hold it.
    """

    given: Any = None
    metavar: str | None = None
    short: str | None = None
    default: str | None = None
    example: str | None = None
    negative: bool = True
    command_line: bool = True
    file: bool = True


class Options(Frozen):
    """Base of the records whose fields are options.

    Raises:
        SettingsError: a value is of a wrong type or out of range, or a name is unknown. The sentence names the field in
            backquotes, which the command line turns into its option.
    """

    panel: ClassVar[str] = "Options"
    """The heading under which help and docs list the fields."""

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as e:
            problem = e.errors()[0]
            name = str(problem["loc"][0]) if problem["loc"] else cls.__name__
            if problem["type"] == "extra_forbidden":
                raise SettingsError(
                    f"{cls.__name__} has no option '{name}'{did_you_mean(name, list(cls.model_fields))}"
                ) from e
            if problem["type"] == "missing":
                raise SettingsError(f"`{name}` is missing: give it", name) from e
            said = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "tuple_type":
                said += f", such as ({problem['input']!r},)"
            shown = "''" if problem["input"] == "" else problem["input"]
            raise SettingsError(f"`{name}` {shown}: {said[:1].lower()}{said[1:]}", name) from e


def did_you_mean(name: str, known: list[str]) -> str:
    """The end of a sentence on an unknown name: the known one that is spelt nearly so, else all."""
    near = get_close_matches(name, known, n=1)
    return f": did you mean '{near[0]}'?" if near else f": known are {', '.join(sorted(known))}"
