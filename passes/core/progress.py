"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

# Called with what is being done, how many steps are done, and of how many.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, of: int) -> None:
    """Report nothing."""
