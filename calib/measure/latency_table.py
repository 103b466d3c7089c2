"""The latency table: measured times of probes on one machine, as a JSON file that people can read and copy.

A time holds for one processor, onnxruntime version, provider and number of threads (`Machine`). Tables of this machine
are kept in the user's cache, and runs at the same time may add to them. With the table of another machine one can plan
for that machine here.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time as clock
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from filelock import FileLock
from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from calib.measure.latency import Measurement
from calib.measure.probing import time_probes
from calib.runtime import ort
from calib.runtime.processor import processor_name
from calib.runtime.providers import short_name
from calib.runtime.sessions import Runtime
from passes.core.errors import OutputError, SettingsError
from passes.core.progress import Progress, silent
from passes.core.records import Frozen, read_record, write_json
from passes.probe import Probe

__all__ = ["LatencyTable", "Machine", "ProbeTime", "cached_table", "cached_tables", "read_table", "this_machine"]


# Seconds between two writes of a table that is being measured.
KEPT_EVERY = 1.0
# Seconds to wait for another run that adds to the same file.
LOCK_TIMEOUT = 30.0
# Providers that run on the processor; OpenVINO names other devices in its options.
ON_PROCESSOR = ("cpu", "openvino", "dnnl", "xnnpack", "acl", "armnn")
# onnxruntime's profiler gives whole microseconds, so that the time of a tiny kernel is uncertain by about one.
MICROSECOND = 1.001e-6


class Machine(Frozen):
    """What a time depends on besides the probe.

    `threads` is the number that is really used, never 0; `options` are the provider's, sorted.
    """

    processor: str
    onnxruntime: str
    provider: str
    threads: int
    options: tuple[str, ...] = Field(default=(), exclude_if=lambda given: not given)

    def __str__(self) -> str:
        provider = f"{self.provider} ({', '.join(self.options)})" if self.options else self.provider
        return f"{self.processor}, onnxruntime {self.onnxruntime}, {provider}, {self.threads} threads"


class ProbeTime(Frozen):
    """The time of a probe in seconds (None if onnxruntime cannot run it), and the half-width of its 95 % interval."""

    seconds: float | None
    uncertainty: float = 0.0

    @classmethod
    def of(cls, measured: Measurement | None) -> ProbeTime:
        """The time that was measured; None for a probe that onnxruntime cannot run."""
        return cls(seconds=None) if measured is None else cls(seconds=measured.value, uncertainty=measured.uncertainty)

    @property
    def usable(self) -> bool:
        """Whether there is a time whose uncertainty is less than half of it, or within the microsecond of a clock."""
        if self.seconds is None or self.seconds <= 0:
            return False
        return self.uncertainty < max(0.5 * self.seconds, MICROSECOND)


class LatencyTable(BaseModel):
    """The times of one machine. Keys are the text of a probe, or "model", a whole model's digest and its batch size."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    machine: Machine
    entries: dict[str, ProbeTime] = Field(default_factory=dict)
    _changed: set[str] = PrivateAttr(default_factory=set)

    def put(self, key: str, entry: ProbeTime) -> None:
        """Set an entry, and mark it as one for `add_to` to write."""
        self.entries[key] = entry
        self._changed.add(key)

    def measure(
        self,
        probes: Iterable[Probe],
        runtime: Runtime,
        progress: Progress = silent,
        kept: Callable[[], None] = lambda: None,
    ) -> None:
        """Time the probes that have no entry yet, on this machine.

        Args:
            probes: what to time; equal ones are timed once.
            runtime: how to run them.
            progress: is told how many probes are done.
            kept: called every `KEPT_EVERY` seconds and at the end, to write the table.
        """
        missing = list({str(p): p for p in probes if str(p) not in self.entries}.values())
        written = clock.monotonic()
        for probe, time in time_probes(missing, runtime, progress):
            self._put_lower(probe, time)
            if clock.monotonic() - written > KEPT_EVERY:
                kept()
                written = clock.monotonic()
        if missing:
            kept()

    def measure_again(self, probes: Iterable[Probe], runtime: Runtime, progress: Progress = silent) -> None:
        """Time probes once more, and keep the lower of the two times."""
        for probe, time in time_probes(list({str(p): p for p in probes}.values()), runtime, progress):
            self._put_lower(probe, time)

    def _put_lower(self, probe: Probe, time: Measurement | None) -> None:
        """Set a probe's entry, unless the table has a lower time, as other load only ever adds to one."""
        known = self.seconds(probe)
        if known is None or (time is not None and time.value < known):
            self.put(str(probe), ProbeTime.of(time))

    def seconds(self, probe: Probe) -> float | None:
        """A probe's time in seconds; None where the table has no usable one."""
        entry = self.entries.get(str(probe))
        return entry.seconds if entry is not None and entry.usable else None

    def digest(self) -> str:
        """SHA-256 of the table in hex; profiles record it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, atomically, and make its folder if needed; raises OutputError."""
        _make_folder(path)
        write_json(self, path)

    def add_to(self, path: str | os.PathLike[str]) -> None:
        """Add the entries that were `put` to a table's file, to which other runs may add at the same time.

        A file that is missing, damaged or of another machine is written anew. Changes that other runs have made to the
        file since this table was read (entries added, replaced or cleared) are kept.

        Raises:
            OutputError: the file cannot be locked or written.
        """
        _make_folder(path)
        lock = FileLock(f"{os.fspath(path)}.lock", timeout=LOCK_TIMEOUT)
        try:
            with lock:
                table = _read_own(path, self.machine)
                table.entries.update({key: self.entries[key] for key in sorted(self._changed)})
                write_json(table, path)
        # filelock raises the latter where the file system has no locks; its Timeout is an OSError, too
        except (OSError, NotImplementedError) as e:
            raise OutputError(f"cannot lock '{path}' ({getattr(e, 'strerror', None) or e}): give another place") from e


def _make_folder(path: str | os.PathLike[str]) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot make the folder of '{path}' ({e.strerror or e}): give another place") from e


def _read_own(path: str | os.PathLike[str], machine: Machine) -> LatencyTable:
    """The table in a file, or an empty table where the file is missing, damaged or of another machine."""
    try:
        table = read_table(path)
    except SettingsError:
        return LatencyTable(machine=machine)
    return table if table.machine == machine else LatencyTable(machine=machine)


def read_table(path: str | os.PathLike[str]) -> LatencyTable:
    """Read a table.

    Raises:
        SettingsError: the file is missing or malformed.
    """
    return read_record(path, LatencyTable, "latency table", "a latency table", SettingsError)


def this_machine(runtime: Runtime) -> Machine:
    """This machine, with the provider and threads of a runtime; raises SettingsError as `providers` does."""
    provider = short_name(runtime.name)
    processor = processor_name() if provider in ON_PROCESSOR else f"{_accelerator()}, {processor_name()}"
    return Machine(
        processor=processor,
        onnxruntime=ort.__version__,
        provider=provider,
        threads=runtime.threads_used,
        options=tuple(sorted(runtime.options)),
    )


def cached_table(machine: Machine) -> tuple[LatencyTable, Path]:
    """The table of a machine in the user's cache, and its path. Where it is missing or damaged, the table is empty."""
    digest = hashlib.sha256(str(machine).encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9]+", "-", machine.processor).strip("-").lower()[:40]
    path = _cache() / f"{words}-{machine.provider}-{machine.threads}-{digest}.json"
    return _read_own(path, machine), path


def cached_tables() -> list[Path]:
    """The paths of all tables in the user's cache."""
    return sorted(_cache().glob("*.json"))


def _cache() -> Path:
    """The folder of tables in the user's cache; for a user without a home, in the folder for temporary files."""
    try:
        root = user_cache_path("hmc_onnx", appauthor=False)
    except RuntimeError:  # raised by newer versions of platformdirs; older ones return a relative path
        root = Path()
    if not root.is_absolute():  # HOME is not set and the user's id is unknown, as it often is in a container
        own = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
        root = Path(tempfile.gettempdir()) / f"hmc_onnx{own}"
    return root / "latency"


def _accelerator() -> str:
    """The graphics processor's name."""
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return "GPU"
