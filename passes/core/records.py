"""Records kept as JSON files: typed, immutable, validated when read, written atomically."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from passes.core.arguments import check_type
from passes.core.atomic import write_atomically
from passes.core.errors import HmcError

__all__ = ["Explained", "Frozen", "read_record", "write_json"]


class Frozen(BaseModel):
    """Base of all records: immutable, and without fields that it does not declare."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, atomically; raises OutputError."""
        write_json(self, path)


class Explained(Frozen):
    """A record that says in a few lines what it holds, where it is printed or shown by a notebook."""

    def explain(self) -> str:
        """What it holds, for people."""
        return super().__str__()

    def __str__(self) -> str:
        return self.explain()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.explain())}</pre>"


_T = TypeVar("_T", bound=BaseModel)


def read_record(path: str | os.PathLike[str], kind: type[_T], what: str, valid: str, refusal: type[HmcError]) -> _T:
    """Read a record from a JSON file and validate it.

    Args:
        path: the file.
        kind: class of the record.
        what: name of the record in messages ("plan").
        valid: the same with an article ("a valid plan").
        refusal: class of the error to raise.

    Raises:
        HmcError: the file is missing or malformed; of the class `refusal`.
    """
    check_type(path, (str, os.PathLike), f"the {what}", "give the path of a JSON file", refusal)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise refusal(f"the {what} '{path}' does not exist: give a file that is there") from e
    except OSError as e:
        raise refusal(f"cannot read the {what} '{path}' ({e.strerror or e}): give a file that can be read") from e
    except UnicodeDecodeError as e:
        raise refusal(f"'{path}' is not {valid}, as it is no text: give a JSON file") from e
    try:
        return kind.model_validate_json(text)
    except ValidationError as e:
        problem = e.errors()[0]
        if problem["type"] == "json_invalid":
            raise refusal(f"'{path}' is not {valid}, as it is no JSON: give another file") from e
        said = problem["msg"].removeprefix("Value error, ")
        said = said[:1].lower() + said[1:]
        where = ".".join(str(p) for p in problem["loc"]) or "the file"
        raise refusal(f"'{path}' is not {valid}: at {where}, {said}") from e
    except HmcError as e:  # raised by nested settings or a goal, which validate themselves
        raise refusal(f"'{path}' is not {valid}: {e}") from e


def write_json(value: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write a record as indented JSON, atomically; raises OutputError."""
    write_atomically(path, (value.model_dump_json(indent=1) + "\n").encode())
