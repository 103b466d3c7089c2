"""Messages from below, which name a field in backquotes, in the words of the command line.

`work_dir` becomes --work-dir, `size=(224, 224)` --size 224 224, `latency=True` --latency, `labels=None` --no-labels.
"""

from __future__ import annotations

import re

__all__ = ["in_options"]

_FIELD = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")


def in_options(message: str) -> str:
    """A message in which the fields that are options are called by their options' names."""
    if not _FIELD.search(message):
        return message
    from hmc_onnx.cli.groups import GROUPS  # which needs onnxruntime, as a message that it is missing does not

    known = {field.name for group in GROUPS for field in group}

    def named(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in known:
            return found[0]
        option = name.replace("_", "-")
        if value in ("None", "False"):
            return f"--no-{option}"
        return f"--{option}" if value in (None, "True") else f"--{option} {_written(value)}"

    return _FIELD.sub(named, message)


def _written(value: str) -> str:
    """A Python value as it is typed on a command line."""
    return value.strip("()'\"").replace(", ", " ")
