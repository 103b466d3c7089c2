"""What the command line shows: progress on standard error, results on standard output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from passes.core.progress import Progress

__all__ = ["console", "progress_bar", "show"]

IN_PIPES = 160  # columns


def console(stderr: bool = False) -> Any:
    """A rich console: as wide as the terminal or COLUMNS says; in a pipe without COLUMNS, wide enough for tables."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    if found.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return found
    return Console(stderr=stderr, highlight=False, width=IN_PIPES)


def show(*parts: Any) -> None:
    """Print tables and lines."""
    target = console()
    for part in parts:
        if isinstance(part, str):
            target.print(part, markup=False, soft_wrap=True)
        else:
            target.print(part)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for each kind of work, with the time left; a line for each when not on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    target = console(stderr=True)
    if not target.is_terminal:
        said: set[str] = set()

        def say(what: str, done: int, of: int) -> None:
            if what not in said:
                said.add(what)
                target.print(f"{what}: {of} steps", markup=False)

        yield say
        return
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=target) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        yield advance
