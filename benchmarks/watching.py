"""The memory of a command and of all that it starts, by what it says that it does; and tables of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import MARKDOWN
from rich.table import Table

GIGABYTE = 1e9
# A process is looked at this often, in seconds. What comes and goes in between is missed.
INTERVAL = 0.05
# Looking at many gigabytes takes longer, and holds up who is looked at: at most this share of the time goes into it.
SHARE = 0.03


def table(title: str, *columns: str) -> Table:
    """A table that can be pasted into the docs."""
    made = Table(title=title, title_justify="left", box=MARKDOWN)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left")
    return made


@dataclass
class Stage:
    """Seconds that a stage took, and the most memory, in bytes, that the command held in it."""

    seconds: float = 0.0
    peak: int = 0
    anonymous: int = 0
    """Of the peak, what is no page of a file, which the system could drop at any time."""


@dataclass
class Usage:
    """What a command used.

    Attributes:
        stages: by what the command said last on standard error when it was looked at.
        code: its exit status; None where it was stopped for its memory.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    code: int | None = None
    said: str = ""

    @property
    def peak(self) -> Stage:
        """The stage with the highest peak, with the seconds of all."""
        highest = max(self.stages.values(), key=lambda stage: stage.peak)
        return Stage(sum(s.seconds for s in self.stages.values()), highest.peak, highest.anonymous)


def descendants(root: int) -> set[int]:
    """A process and all that it has started, by id."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])  # a name may hold brackets and spaces
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def memory_of(processes: set[int]) -> tuple[int, int]:
    """Bytes resident, and of these the anonymous ones; what several processes share is split among them (Pss)."""
    sums = {"Pss:": 0, "Pss_Anon:": 0}
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        for line in lines[1:]:
            key, kilobytes, *_ = line.split()
            if key in sums:
                sums[key] += 1024 * int(kilobytes)
    return sums["Pss:"], sums["Pss_Anon:"]


def watched(command: Sequence[str], most: float, folder: Path) -> Usage:
    """Run a command to its end, or until it and what it has started hold more than `most` bytes."""
    usage = Usage()
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        # a session of its own, so that all of it can be stopped
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
    try:
        before = time.perf_counter()
        while process.poll() is None:
            looked = time.perf_counter()
            now, anonymous = memory_of(descendants(process.pid))
            looked = time.perf_counter() - looked
            lines = errors.read_text().splitlines()
            stage = usage.stages.setdefault(lines[-1] if lines else "start, load", Stage())
            stage.seconds += time.perf_counter() - before
            before = time.perf_counter()
            if now > stage.peak:
                stage.peak, stage.anonymous = now, anonymous
            if now > most:
                return usage
            time.sleep(max(INTERVAL, looked / SHARE))
        usage.code = process.returncode
    finally:
        usage.said = errors.read_text()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return usage
