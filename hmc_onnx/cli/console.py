"""What the command line shows: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from passes.core.progress import Progress

__all__ = ["console", "progress_bar", "progress_lines", "show", "show_json"]

IN_PIPES = 160  # columns
# Seconds between two lines of progress on one kind of work, where it is written to a file.
LINE_EVERY = 10.0


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


def show_json(result: Any) -> None:
    """Print a result, of what JSON has, as one document on standard output; null stands for NaN and infinity."""
    print(json.dumps(_finite(result), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress_lines(write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress as lines for a log: one when a kind of work begins, then one every `LINE_EVERY` seconds.

    Times are measured at several stages: the time that is left is that of the stage.

    Args:
        write: is given each line.
        clock: seconds.
    """
    began: dict[str, tuple[float, int]] = {}
    written: dict[str, float] = {}
    last: dict[str, int] = {}

    def say(what: str, done: int, of: int) -> None:
        now = clock()
        again = done < last.get(what, 0)
        last[what] = done
        if again:
            began[what], written[what] = (now, done), now
        elif what not in began:
            began[what], written[what] = (now, done), now
            write(f"{what}: {of} steps")
        elif now - written[what] >= LINE_EVERY:
            start, at_start = began[what]
            written[what] = now
            line = f"{what}: {done} of {of} ({done / max(of, 1):.0%})"
            if at_start < done < of:
                line += f", about {_duration((now - start) * (of - done) / (done - at_start))} left"
            write(line)

    return say


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for each kind of work, with the time left; where there is no terminal, `progress_lines`."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    target = console(stderr=True)
    if not target.is_terminal:
        yield progress_lines(lambda line: target.print(line, markup=False, soft_wrap=True))
        return
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=target) as bars:
        tasks: dict[str, Any] = {}
        last: dict[str, int] = {}

        def advance(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            elif done < last[what]:
                bars.reset(tasks[what], total=of)  # so that the time left is that of this work alone
            last[what] = done
            bars.update(tasks[what], completed=done, total=of)

        yield advance
