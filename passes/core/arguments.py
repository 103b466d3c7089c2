"""What callers of the Python interface give: its type is checked where a wrong one would end in another's error."""

from __future__ import annotations

from passes.core.errors import HmcError, SettingsError

__all__ = ["check_type"]


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
