"""The options of the commands, made from the fields of records (see `hmc_onnx.records.options`).

A command names the groups of options that it takes. For each field of a group, typer gets a parameter; what the user
gave is laid over what the YAML file of `--config` says, and the command asks for the records: `given.of(Settings)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from hmc_onnx.records.options import Option, Options
from passes.core.errors import SettingsError

__all__ = ["Given", "Group", "OptionField", "alternatives", "command", "groups_of", "spread"]

_R = TypeVar("_R", bound=Options)

# What stands for a value of a type in the help, where the option names nothing better.
METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class OptionField:
    """A field of a record as an option."""

    name: str
    field: FieldInfo
    record: type[Options]

    @property
    def option(self) -> Option:
        """What is declared of it for the command line."""
        return next((m for m in self.field.metadata if isinstance(m, Option)), Option())

    @property
    def type(self) -> Any:
        """The type of a value on the command line and in a YAML file."""
        own = self.option.given or self.field.annotation
        if get_origin(own) in (Union, UnionType):
            (own,) = (t for t in get_args(own) if t is not type(None))
        if get_origin(own) is tuple and get_args(own)[-1] is Ellipsis:
            return list[get_args(own)[0]]  # type: ignore[misc]  # an option that may be repeated
        return own

    @property
    def flags(self) -> list[str]:
        """Its names on the command line."""
        name = self.name.rstrip("_").replace("_", "-")  # a record cannot have a field "json"
        two = self.type is bool and self.option.command_line and self.option.negative
        long = f"--{name}/--no-{name}" if two else f"--{name}"
        return [long, *([self.option.short] if self.option.short else [])]

    @property
    def metavar(self) -> str:
        """What stands for its value."""
        if self.type is bool:
            return ""
        kind = get_args(self.type)[0] if get_origin(self.type) is list else self.type
        choice = get_origin(kind) is Literal
        return self.option.metavar or ("NAME" if choice else METAVARS[kind])

    @property
    def default(self) -> str:
        """What happens where it is left out, in words; empty where that says nothing."""
        if self.field.is_required():
            return ""
        value = self.field.default
        if self.option.default or value in (None, ()):
            return self.option.default or ""
        if isinstance(value, bool):
            flags = self.flags[0].split("/")
            return flags[0 if value else 1] if len(flags) == 2 else str(value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def help(self) -> str:
        """Its description, with the names that may be chosen, and what happens where it is left out."""
        said = [self.field.description or ""]
        if get_origin(self.type) is Literal:
            said.append(f"One of {alternatives(get_args(self.type))}.")
        if self.default and self.field.default is not False:
            said.append(f"Default: {self.default}.")
        return " ".join(said)

    def parameter(self) -> inspect.Parameter:
        """It as a parameter of a command; None where it is not given, so that a YAML file can say more."""
        own = typer.Option(
            *self.flags,
            metavar=self.metavar,
            help=escape(self.help),  # brackets would be read as markup
            rich_help_panel=self.record.panel,
            show_default=False,
        )
        needed = self.field.is_required()
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if needed else None,
            annotation=Annotated[self.type if needed else self.type | None, own],
        )


@dataclass(frozen=True)
class Group:
    """The options of a record, or some of them.

    Attributes:
        record: whose fields they are.
        only: the names of those that are offered; None: all that the command line has,
        without: but for these.
        needs: a flag of another group, without which none of these may be given.
    """

    record: type[Options]
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    needs: str | None = None

    def __iter__(self) -> Iterator[OptionField]:
        for name, field in self.record.model_fields.items():
            found = OptionField(name, field, self.record)
            offered = name not in self.without if self.only is None else name in self.only
            if found.option.command_line and offered:
                yield found


def groups_of(given: Sequence[Group | type[Options]]) -> list[Group]:
    """Groups, of which some may be given by their record alone."""
    return [g if isinstance(g, Group) else Group(g) for g in given]


class Given:
    """The options of one call: those of the command line over those of the YAML file.

    Args:
        groups: of the command.
        values: by option, those of the YAML file among them.
        typed: the options that the command line gave.

    Attributes:
        values: by option, of those that the command has and that were given.
        typed: as given.
        resources: what is held until the command ends.

    Raises:
        SettingsError: options were given that only apply with another.
    """

    def __init__(self, groups: Sequence[Group], values: dict[str, Any], typed: Collection[str] = ()) -> None:
        offered = {field.name for group in groups for field in group}
        self.values = {name: value for name, value in values.items() if name in offered}
        self.typed = typed
        self.resources = ExitStack()
        for group in groups:
            self._check_needed(group, groups)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def of(self, record: type[_R], **more: Any) -> _R:
        """A record of what was given, and of what the command itself sets.

        Raises:
            SettingsError: a value is out of range; the sentence begins with the YAML file that holds it.
        """
        try:
            return record(**({name: self.values[name] for name in record.model_fields if name in self} | more))
        except SettingsError as e:
            if "config" not in self or e.field not in self.values or e.field in (*self.typed, *more):
                raise
            raise SettingsError(f"'{self.values['config']}': {e}", e.field) from e

    def need(self, name: str) -> Any:
        """A value that the command cannot do without; raises SettingsError where it was not given."""
        if name not in self:
            raise SettingsError(f"`{name}` is missing: give it on the command line or in the `config` file")
        return self.values[name]

    def _check_needed(self, group: Group, groups: Sequence[Group]) -> None:
        if group.needs is None or self.values.get(group.needs):
            return
        others = {field.name for other in groups if other is not group for field in other}
        for field in group:
            if field.name in self and field.name not in others:
                raise SettingsError(f"`{field.name}` only applies with `{group.needs}=True`")


class _Command(typer.core.TyperCommand):
    """A command whose usage errors know which command they are of."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as e:
            if hasattr(e, "ctx") and e.ctx is None:
                e.ctx = ctx
            raise


def command(
    app: typer.Typer, name: str, text: str, *offered: Group | type[Options]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command with the options of some groups.

    The function's own parameters are the command's arguments; its last, `given`, is what was given of the options.

    Args:
        app: where it is registered.
        name: of the command.
        text: its help.
        offered: the groups, in the order of the help.
    """
    groups = groups_of(offered)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        arguments = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "given"]
        options: dict[str, OptionField] = {}
        for group in groups:
            options |= {field.name: field for field in group if field.name not in options}
        parameters = [*arguments, *(field.parameter() for field in options.values())]

        def call(**values: Any) -> None:
            from hmc_onnx.cli.config import merged

            positional = {p.name: values.pop(p.name) for p in arguments}
            typed = [name for name, value in values.items() if value not in (None, [])]
            given = Given(groups, merged(values), typed)
            with given.resources:
                function(**positional, given=given)

        # typer reads what a command takes from the signature and the annotations of its function
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, help=text, cls=_Command)(call)
        return function

    return register


def alternatives(names: Sequence[str]) -> str:
    """Names, as in "a, b or c"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def spread(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--mean 0.5 0.5 0.5` is `--mean 0.5 --mean 0.5 --mean 0.5`, the form that typer knows.

    This is done for the options that take one number or more.
    """
    from hmc_onnx.cli.groups import GROUPS

    several = {field.flags[0] for group in GROUPS for field in group if field.type == list[float]}
    found: list[str] = []
    option, given = "", False
    for argument in arguments:
        if argument in several:
            option, given = argument, False
        elif option and _is_number(argument):
            if given:
                found.append(option)
            given = True
        else:
            option = ""
        found.append(argument)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
