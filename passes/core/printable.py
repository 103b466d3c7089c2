"""Paths and texts for people and files, where names of files may hold bytes that are not valid UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["shown"]


def shown(path: Path | str) -> str:
    """A path, or a text with paths, in printable form: bytes that are not valid UTF-8 become escapes such as \\xff."""
    return os.fsencode(path).decode(errors="backslashreplace")
