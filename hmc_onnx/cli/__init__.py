"""The command line: `hmc-onnx`. A user's mistake ends in one sentence on standard error and exit code 1."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from hmc_onnx.cli.help import COMMANDS, PROGRAM

__all__ = ["app", "main"]

INTERRUPTED = 128 + signal.SIGINT
# typer brings a click of its own since 0.16, whose errors are no subclasses of click's
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Commands(TyperGroup):
    """The commands by name and help; one is imported, with all that it needs, when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            from hmc_onnx.cli.commands import commands

            command = commands().get_command(ctx, name)
        return name, command, rest


app = typer.Typer(
    name="hmc-onnx",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=PROGRAM,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hmc-onnx {version('hmc-onnx')}")
        raise typer.Exit


@app.callback()
def _program(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


def _not_imported_yet() -> None:
    pass


for _name, _text in COMMANDS.items():
    app.command(_name, help=_text)(_not_imported_yet)


def main() -> None:
    """Run the command line and exit."""
    from passes.core.errors import HmcError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # × and the like, where the encoding has none
    warnings.filterwarnings("ignore", module="joblib")  # it tells of the tasks that an interrupt cancels
    # an interrupt leaves loky's tracker of resources to clean up, which it does, and warns of
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that worker processes go, too
    try:
        code = app(prog_name="hmc-onnx", standalone_mode=False)
    except HmcError as e:
        from hmc_onnx.cli.wording import in_options

        _fail(f"error: {in_options(str(e))}", 1)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except UsageError as e:
        _fail(_usage(e), 2)
    except OSError as e:
        _fail(f"error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}: check the disk and permissions", 1)
    except MemoryError:
        _fail("error: out of memory: use fewer --samples", 1)
    if code == INTERRUPTED:  # typer turns an interrupt into this code
        _fail("interrupted: nothing was written", INTERRUPTED)
    sys.exit(code or 0)


def _usage(error: Any) -> str:
    """One sentence on a command line that cannot be parsed; empty where the help has been shown instead."""
    message = " ".join(str(error.format_message()).split()).replace("Value error, ", "")
    message = message.rstrip(".?").replace(". Did", ", did")
    command = error.ctx.command_path if error.ctx else "hmc-onnx"
    return f"error: {message}: see '{command} --help'" if message else ""


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)
