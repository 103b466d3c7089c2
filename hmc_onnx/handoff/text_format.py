"""Protobuf's text format, written and read without the messages' declarations: those of Triton are no dependency.

A message is a mapping from field names to values; a list is a repeated field. Enumeration constants are `Constant`s,
as they are written without quotes. protobuf's own tokenizer reads the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.text_format import ParseError, Tokenizer

__all__ = ["Constant", "parsed", "written"]


class Constant(str):
    """The name of an enumeration's constant."""


def written(message: Mapping[str, Any], indent: str = "") -> str:
    """A message as text, one field a line."""
    lines = []
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{name} {{\n{written(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Constant):
        return str(value)
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str) else str(value)


def parsed(text: str) -> dict[str, list[Any]]:
    """The fields of a message as text, each with all its values in order.

    Raises:
        ParseError: the text is not of this format.
    """
    return _message(Tokenizer(text.splitlines()), None)


def _message(tokens: Tokenizer, end: str | None) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    while not (tokens.AtEnd() if end is None else tokens.TryConsume(end)):
        if tokens.AtEnd():
            raise ParseError("a message does not end")
        values = found.setdefault(tokens.ConsumeIdentifier(), [])
        tokens.TryConsume(":")
        if tokens.TryConsume("["):
            while not tokens.TryConsume("]"):
                values.append(_value(tokens))
                tokens.TryConsume(",")
        else:
            values.append(_value(tokens))
        _ = tokens.TryConsume(",") or tokens.TryConsume(";")
    return found


def _value(tokens: Tokenizer) -> Any:
    if tokens.TryConsume("{"):
        return _message(tokens, "}")
    if tokens.TryConsume("<"):
        return _message(tokens, ">")
    if tokens.token[:1] in ("'", '"'):
        return tokens.ConsumeString()
    token = tokens.token
    tokens.NextToken()
    try:
        return int(token)
    except ValueError:
        return {"true": True, "false": False}.get(token, Constant(token))
