"""Errors that a user can fix. Each message is one sentence: what is wrong, where, and what to do.

A message names a setting by its Python field, in backquotes: `work_dir`, or with a value `size=(224, 224)`. The command
line replaces these by its own options (--work-dir, --size 224 224).
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "HmcError",
    "HmcWarning",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "PlanError",
    "SettingsError",
]


class HmcError(Exception):
    """Base of all errors that a user's input can cause; the CLI prints the message and exits with 1."""


class ModelError(HmcError):
    """The model file is missing, broken, or contains something that cannot be compressed."""


class DataError(HmcError):
    """The calibration data is missing, unreadable, or does not fit the model."""


class SettingsError(HmcError):
    """A setting is out of range, unknown, or asks for something that does not exist.

    Attributes:
        field: name of the setting whose value is at fault; None where that is not one setting alone.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MissingPackageError(SettingsError, ImportError):
    """A package that the work needs is not installed, or cannot be imported; the sentence says what to type."""


class PlanError(HmcError):
    """A plan or profile is malformed or was made from another model, other data or other settings."""


class OutputError(HmcError):
    """The output cannot be written."""


class HmcWarning(UserWarning):
    """A problem that does not stop the work, but that the user should know of and fix; also one sentence."""
