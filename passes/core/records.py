"""What is kept in JSON files: typed, frozen, checked when it is read, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from passes.core.atomic import write_atomically
from passes.core.errors import HmcError

__all__ = ["Frozen", "read_record", "write_json"]


class Frozen(BaseModel):
    """A record that is not changed, and has no fields but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, atomically; raises OutputError."""
        write_json(self, path)


_T = TypeVar("_T", bound=BaseModel)


def read_record(path: str | os.PathLike[str], kind: type[_T], what: str, valid: str, refusal: type[HmcError]) -> _T:
    """Read a record.

    Args:
        path: of its file.
        kind: of the record.
        what: it is, and
        valid: the same with an article, for the sentences of a refusal.
        refusal: is raised where the file is missing or malformed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise refusal(
            f"cannot read the {what} '{path}' ({getattr(e, 'strerror', None) or e}): give a file that is there"
        ) from e
    try:
        return kind.model_validate_json(text)
    except ValidationError as e:
        problem = e.errors()[0]
        where = ".".join(str(p) for p in problem["loc"]) or "the file"
        raise refusal(f"'{path}' is not {valid}: at {where}, {problem['msg'].lower()}") from e
    except HmcError as e:  # of the settings or the goal within, which check themselves
        raise refusal(f"'{path}' is not {valid}: {e}") from e


def write_json(value: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write a record as indented JSON, atomically; raises OutputError."""
    write_atomically(path, (value.model_dump_json(indent=1) + "\n").encode())
