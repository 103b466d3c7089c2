"""Whether `calib` and `passes` are ours: these are common names, and a user's calib.py beside a script hides ours."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_own_modules"]

HOME = Path(__file__).absolute().parents[1]


def check_own_modules() -> None:
    """Raise ImportError, with one sentence, where another module has the name of one of our packages."""
    for name in ("calib", "passes"):
        place = _place(name)
        if place is None:
            raise ImportError(f"hmc_onnx cannot find its package '{name}' in '{HOME}': install hmc_onnx again")
        if place != "frozen" and Path(place).absolute().with_suffix("") != HOME / name / "__init__":
            raise ImportError(
                f"hmc_onnx cannot import its package '{name}', as '{place}' has the same name: "
                "rename that file or folder, or run from another folder"
            )


def _place(name: str) -> str | None:
    """The file that an import of the name reads; "frozen" within a program that is one executable."""
    try:
        spec = find_spec(name)
    except ValueError:  # the module was put into sys.modules without a spec
        return getattr(sys.modules[name], "__file__", None)
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)  # a folder without __init__.py
