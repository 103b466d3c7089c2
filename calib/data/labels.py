"""Class numbers: an offset that is added to them, and files that give each class folder its number."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from passes.core.errors import DataError

__all__ = ["Labelling", "read_label_map"]


@dataclass(frozen=True)
class Labelling:
    """How stored labels become the model's class numbers.

    Attributes:
        offset: number to add to every label, such as 1 where labels count from 0 and the model's class 0 is
            "background".
        names: class number by class folder name, before the offset is added; None: the folders are numbered in order.
    """

    offset: int = 0
    names: Mapping[str, int] | None = None

    def shifted(self, labels: np.ndarray | None, where: str) -> np.ndarray | None:
        """Labels (N,) with the offset added; raises DataError if one would be negative."""
        if labels is None or not self.offset:
            return labels
        shifted = labels + self.offset
        if shifted.size and shifted.min() < 0:
            raise DataError(
                f"`labels_offset` {self.offset} makes label {labels.min()} of {where} {shifted.min()}: "
                f"give {-int(labels.min())} or more"
            )
        return np.asarray(shifted)


def read_label_map(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read the class number of each class folder, by folder name, from a file.

    Args:
        path: a JSON object that maps each name to its number; or a text file in which each line is a name and its
            number, separated by spaces, a comma, a colon or a tab; or a text file of names only, which are numbered
            from 0. Blank lines and lines that begin with # are ignored.

    Raises:
        DataError: the file cannot be read, or has none of these forms.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "it is no UTF-8 text"
        raise DataError(f"cannot read the label map '{path}' ({reason}): give a text or JSON file") from e
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, path)
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    numbers: dict[str, int] = {}
    numbered = [_numbered(line) for line in lines]
    without = [line for line, found in zip(lines, numbered, strict=True) if found is None]
    if without and len(without) < len(lines):
        raise DataError(
            f"'{without[0]}' in the label map '{path}' has no class number, and other lines have: "
            "give each line a folder's name and its class number"
        )
    for index, (line, found) in enumerate(zip(lines, numbered, strict=True)):
        name, number = (line, index) if found is None else found
        if name in numbers:
            raise DataError(f"'{name}' is in the label map '{path}' twice: give each folder once")
        numbers[name] = number
    if not numbers:
        raise DataError(f"the label map '{path}' is empty: give each line a folder's name and its class number")
    return numbers


def _numbered(line: str) -> tuple[str, int] | None:
    """The name and the number of a line, or None if it does not end in a number."""
    name, _, number = line.replace(",", " ").replace(":", " ").replace("\t", " ").rstrip().rpartition(" ")
    return (name.strip(), int(number)) if name.strip() and number.isascii() and number.isdecimal() else None


def _from_json(text: str, path: Path) -> dict[str, int]:
    wanted = f'give \'{path}\' as an object such as {{"cat": 0, "dog": 1}}'
    try:
        content = json.loads(text)
    except ValueError as e:
        raise DataError(f"the label map '{path}' is not valid JSON ({e}): {wanted}") from e
    good = isinstance(content, dict) and content
    if not good or not all(type(number) is int and number >= 0 for number in content.values()):
        raise DataError(f"the label map '{path}' does not give each folder's name a class number: {wanted}")
    return dict(content)
