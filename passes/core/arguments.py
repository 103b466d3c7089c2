"""What callers of the Python interface give: its type is checked where a wrong one would end in another's error."""

from __future__ import annotations

from typing import Any, get_args

from passes.core.errors import HmcError, SettingsError

__all__ = ["check_one_of", "check_type"]


def check_type(
    value: object, kind: type | tuple[type, ...], what: str, how: str, error: type[HmcError] = SettingsError
) -> None:
    """Raise `error` unless a value is of a type.

    Args:
        value: the value.
        kind: the type, or several.
        what: what the value is, for the message.
        how: what to give in its place.
        error: the class of the error.
    """
    if not isinstance(value, kind):
        raise error(f"{what} {value!r:.60} is of type {type(value).__name__}: {how}")


def check_one_of(value: object, alternatives: Any, what: str) -> None:
    """Raise SettingsError unless a value is one of those that a Literal type names; `what` it is, for the message."""
    known = get_args(alternatives)
    if not isinstance(value, str) or value not in known:
        raise SettingsError(f"unknown {what} {value!r:.60}: use {', '.join(known)}")
