"""Where results may be written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from passes.core.errors import OutputError
from passes.graph.files import weights_beside, weights_of

__all__ = ["check_output"]


def check_output(path: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Refuse, before any work, an output that cannot be written or would replace an input, or an input's weights.

    Raises:
        OutputError: see above.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"the output '{path}' is a folder: give a file name")
    if not path.parent.is_dir():
        what = "is not a folder: give another path" if path.parent.exists() else "does not exist: make it first"
        raise OutputError(f"the output's folder '{path.parent}' {what}")
    if path.exists() and not path.is_file():
        raise OutputError(f"the output '{path}' is not a regular file: give another name")
    replaced = [place for place in (path, weights_of(path)) if place.exists()]
    for other in map(Path, inputs):
        read = [p for p in (other, *weights_beside(other)) if p.exists()] if replaced else []
        if os.path.realpath(path) == os.path.realpath(other) or any(a.samefile(b) for a in replaced for b in read):
            raise OutputError(f"the output '{path}' is an input too, or another output: give another name")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=path.parent):  # what a user may do says little, of /proc for one
            pass
    except OSError as e:
        raise OutputError(f"the output '{path}' cannot be written ({e.strerror or e}): give another place") from e
