"""Tasks for tests of worker processes. Workers import this module, so it imports little."""

import os
import signal
import time
from pathlib import Path

kept: list[bytes] = []


def doubled(x: int) -> int:
    return 2 * x


def killed_once(mark: str, x: int) -> int:
    """Its process is killed, but for the second time."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return doubled(x)


def always_killed(*_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def grown(megabytes: int) -> int:
    kept.append(b"x" * megabytes * 10**6)
    time.sleep(1.2)  # loky's own executor would look at a worker once a second
    return os.getpid()
