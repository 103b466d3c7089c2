"""Olive's package configuration: where the passes are.

A file that is given as `olive run --package-config` takes the place of Olive's own, so the entry of this package is
added to all that the installed Olive has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.core.errors import SettingsError

__all__ = ["own_entry", "package_config", "with_entry"]


def own_entry() -> dict[str, Any]:
    """The package configuration of this package alone; it suffices for workflows of this pass only."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def with_entry(base: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A package configuration with the passes of another added."""
    return {**base, "passes": {**base["passes"], **entry["passes"]}}


def package_config() -> dict[str, Any]:
    """That of the installed Olive with this package's pass added; raises SettingsError where Olive is not installed."""
    try:
        from olive.package_config import OlivePackageConfig  # noqa: PLC0415  an extra
    except ImportError as e:
        raise SettingsError(
            f"Olive cannot be imported ({e}): install this package's extra, as in pip install '.[cpu,olive]'"
        ) from e
    path = Path(OlivePackageConfig.get_default_config_path())
    return with_entry(json.loads(path.read_text(encoding="utf-8")), own_entry())
