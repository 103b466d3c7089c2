"""The command line: `hmc-onnx`. A user's mistake ends in one sentence on standard error and exit code 1."""

from __future__ import annotations

import signal
import sys

from hmc_onnx.cli.commands import app

__all__ = ["app", "main"]

INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command line and exit."""
    import click

    from passes.errors import HmcError

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that worker processes go, too
    try:
        code = app(standalone_mode=False)
    except HmcError as e:
        _fail(f"error: {e}", 1)
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except OSError as e:
        _fail(f"error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}: check the disk and permissions", 1)
    except MemoryError:
        _fail("error: out of memory: use fewer --samples", 1)
    if code == INTERRUPTED:  # typer turns an interrupt into this code
        _fail("interrupted: nothing was written", INTERRUPTED)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
