"""Atomic writing of files and folders: each is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.core.errors import OutputError

__all__ = ["new_folder", "replacing", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` whole or not at all; raises OutputError where `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path`, and move that file to `path` when the context ends.

    A reader of `path` thus sees the old file or the whole new one. If the context raises, `path` stays as it was.

    Raises:
        OutputError: the folder is missing, `path` cannot be written, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if not path.parent.is_dir():
            raise NotADirectoryError(20, f"there is no folder '{path.parent}'")
        if path.exists() and not path.is_file():  # a device or a pipe, which a file must not replace
            raise OSError(22, "it is not a regular file")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as e:
        raise OutputError(f"cannot write '{path}' ({e.strerror or e}): make room or give another place") from e
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside a place, that is moved there when the context ends without an error.

    Raises:
        OutputError: something other than an empty folder is there, or it cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"'{path}' is there already and is no empty folder: give a new one, or empty it")
    if not path.parent.is_dir():
        raise OutputError(f"the folder '{path.parent}' does not exist: make it first")
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.rmdir()
        temporary.rename(path)
        temporary = None
    except OSError as e:
        raise OutputError(f"cannot write '{path}' ({e.strerror or e}): make room or give another place") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
