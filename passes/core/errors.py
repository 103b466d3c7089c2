"""The errors that a user can mend: each message is one sentence that says what, where and what to do.

A message names a setting by its field, in backquotes: `work_dir`, or with a value `size=(224, 224)`. That is right for
users of Python; the command line puts its options in their place (--work-dir, --size 224 224).
"""

from __future__ import annotations

__all__ = ["DataError", "HmcError", "HmcWarning", "ModelError", "OutputError", "PlanError", "SettingsError"]


class HmcError(Exception):
    """Base of all errors that a user's input can cause; the CLI prints the message and exits with 1."""


class ModelError(HmcError):
    """The model file is missing, broken, or holds what cannot be compressed."""


class DataError(HmcError):
    """The calibration data is missing, unreadable, or does not fit the model."""


class SettingsError(HmcError):
    """A setting is out of range, unknown, or asks for what is not there."""


class PlanError(HmcError):
    """A plan or profile is malformed or was made from another model, other data or other settings."""


class OutputError(HmcError):
    """The output cannot be written."""


class HmcWarning(UserWarning):
    """What a user should know and mend, though the work goes on: one sentence, too."""
