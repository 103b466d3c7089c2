"""The callback by which long computations report their progress."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

# Called with what is being done, the number of steps done, and the number of all steps.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, of: int) -> None:
    """Ignore the progress."""
