"""The command line `hmc-onnx`. For a user's mistake it prints one sentence on standard error and exits with code 1."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hmc_onnx.cli.help import COMMANDS, PROGRAM
from hmc_onnx.own_modules import check_own_modules

__all__ = ["app", "main"]

INTERRUPTED = 128 + signal.SIGINT


class _Commands(TyperGroup):
    """The commands by name and help; one is imported, with all that it needs, when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            from hmc_onnx.cli.commands import commands
            from hmc_onnx.cli.options import spread

            command, rest = commands().get_command(ctx, name), spread(rest)
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
    try:
        check_own_modules()
    except ImportError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    with _settings_of_a_command():
        message, code = _run()
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def _run() -> tuple[str, int]:
    """Run the command; the sentence on what went wrong, or nothing, and the exit code."""
    from hmc_onnx.cli.wording import in_options
    from passes.core.errors import HmcError

    try:
        code = app(prog_name="hmc-onnx", standalone_mode=False)
    except HmcError as e:
        return f"error: {in_options(str(e))}", 1
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except OSError as e:
        return f"error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}: check the disk and permissions", 1
    except MemoryError:
        return "error: out of memory: use fewer --samples", 1
    except Exception as e:
        # The class of these errors is click's, or that of a click within typer, which typer does not export.
        if not hasattr(e, "format_message"):
            raise
        return _usage(e), 2
    if code == INTERRUPTED:  # typer turns an interrupt into this code
        kept = any(argument.partition("=")[0] == "--work-dir" for argument in sys.argv)
        goes_on = "; the work folder keeps what was measured, and the same command goes on from it" if kept else ""
        return f"interrupted: no output was written{goes_on}", INTERRUPTED
    return "", code or 0


@contextmanager
def _settings_of_a_command() -> Iterator[None]:
    """Settings of the process that a command needs; they are put back, for callers of `main` that live on."""
    from passes.core.errors import HmcWarning

    stdout, terminated = sys.stdout, signal.getsignal(signal.SIGTERM)
    if isinstance(stdout, io.TextIOWrapper):
        errors = stdout.errors
        stdout.reconfigure(errors="replace")  # × and the like, where the encoding has none
    ignored = os.environ.get("PYTHONWARNINGS")
    # an interrupt leaves loky's tracker of resources to clean up, which it does, and warns of
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that worker processes go, too
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="joblib")  # it tells of the tasks that an interrupt cancels
            warnings.filterwarnings("always", category=HmcWarning)
            warnings.showwarning = partial(_show_warning, set(), warnings.showwarning)
            yield
    finally:
        signal.signal(signal.SIGTERM, terminated)
        if ignored is None:
            os.environ.pop("PYTHONWARNINGS", None)
        if isinstance(stdout, io.TextIOWrapper) and not stdout.closed:
            stdout.reconfigure(errors=errors)


def _show_warning(
    shown: set[str], others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """One sentence, as of errors, and once; warnings of other libraries are shown as Python does."""
    from hmc_onnx.cli.wording import in_options
    from passes.core.errors import HmcWarning

    if not issubclass(category, HmcWarning):
        others(message, category, *place)
    elif str(message) not in shown:
        shown.add(str(message))
        print(f"warning: {in_options(str(message))}", file=sys.stderr)


def _usage(error: Any) -> str:
    """One sentence on a command line that cannot be parsed; empty where the help has been shown instead."""
    message = " ".join(str(error.format_message()).split()).replace("Value error, ", "")
    message = message.rstrip(".?").replace(". Did", ", did")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hmc-onnx"
    return f"error: {message}: see '{command} --help'" if message else ""
