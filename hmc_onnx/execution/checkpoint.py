"""The checkpoint: stores every measurement of a run in a folder, so that an interrupted run can continue.

A value is written to a temporary file, which is then renamed, so that an interruption never leaves a partial value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib

from passes.core.atomic import replacing, write_atomically
from passes.core.errors import OutputError, SettingsError
from passes.core.shelf import moved_to

__all__ = ["Checkpoint"]


class Checkpoint:
    """The values of one run.

    Args:
        folder: folder of the values; it is made if it does not exist. None: nothing is stored.
        identity: what identifies the run (digests, settings, version), by name.

    Raises:
        SettingsError: the folder belongs to a run with another identity, or holds other files.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, str]) -> None:
        self.folder = folder
        if folder is None:
            return
        about = folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not about.exists():
                if any(not path.name.startswith(".") for path in folder.iterdir()):
                    raise SettingsError(f"the work folder '{folder}' holds other files: give an empty one")
                write_atomically(about, (json.dumps(dict(identity), indent=1) + "\n").encode())
            found = dict(json.loads(about.read_text(encoding="utf-8")))
        except OSError as e:
            raise OutputError(
                f"cannot use the work folder '{folder}' ({e.strerror or e}): give another `work_dir`"
            ) from e
        except (TypeError, ValueError) as e:
            raise SettingsError(f"'{about}' is damaged: give another `work_dir`") from e
        for name, value in identity.items():
            if found.get(name) != value:
                raise SettingsError(
                    f"the work folder '{folder}' is of a run with {_other(name)}: give another `work_dir`, or remove it"
                )

    def __contains__(self, name: str) -> bool:
        return self.folder is not None and self._place(name).exists()

    @property
    def arrays(self) -> Path | None:
        """The folder for arrays that are kept outside the values; None without a folder."""
        return None if self.folder is None else (self.folder / "arrays").absolute()

    def load(self, name: str) -> Any:
        """Load a stored value; raises SettingsError if its file cannot be read or is damaged."""
        assert self.arrays is not None
        try:
            with moved_to(self.arrays):
                return joblib.load(self._place(name))
        except OSError as e:
            raise SettingsError(f"cannot read '{self._place(name)}' ({e.strerror or e}): make it readable") from e
        except Exception as e:  # what unpickling raises has no common base
            raise SettingsError(
                f"'{self._place(name)}' is damaged: remove it, and what it held is measured again"
            ) from e

    def save(self, name: str, value: Any) -> None:
        """Store a value under a name, "WHAT/WHICH"; raises OutputError. Does nothing without a folder."""
        if self.folder is None:
            return
        place = self._place(name)
        try:
            place.parent.mkdir(exist_ok=True)
            with replacing(place) as temporary:
                joblib.dump(value, temporary)
        except OSError as e:
            raise OutputError(
                f"cannot write to the work folder '{self.folder}' ({e.strerror or e}): "
                "make room or give another `work_dir`"
            ) from e

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        what, _, which = name.partition("/")
        return self.folder / what.replace(" ", "-") / f"{hashlib.sha256(which.encode()).hexdigest()[:24]}.joblib"


def _other(name: str) -> str:
    return {"model": "another model", "data": "other calibration data", "version": "another version of hmc_onnx"}.get(
        name, f"other {name}"
    )
