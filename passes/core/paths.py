"""Paths as users give them, with ~, and in printable form, as they may hold bytes that are not valid UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

from passes.core.errors import HmcError

__all__ = ["expanded", "shown"]


def shown(path: Path | str) -> str:
    """A path, or a text with paths, in printable form: bytes that are not valid UTF-8 become escapes such as \\xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


def expanded(path: str | os.PathLike[str], what: str, error: type[HmcError]) -> Path:
    """A path with ~ and ~user replaced, as a shell does where nothing stands before it.

    Args:
        path: the path.
        what: what it is of, for the message.
        error: raised where there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise error(
            f"{what} '{shown(Path(path))}' begins with the home of a user that is not known here: give the whole path"
        ) from e
