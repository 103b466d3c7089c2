"""Each probe is timed once a machine, and its time comes back from a file."""

from __future__ import annotations

import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime as ort
import pytest
from filelock import FileLock
from probes import probe

from calib.measure import latency_table
from calib.measure.latency import Measurement
from calib.measure.latency_table import (
    LatencyTable,
    Machine,
    ProbeTime,
    cached_table,
    cached_tables,
    read_table,
    this_machine,
)
from calib.runtime.sessions import CPU, Runtime
from passes.core.errors import OutputError, SettingsError
from passes.probe import Probe

MACHINE = Machine(processor="A Processor @ 2.5 GHz", onnxruntime="1.20.0", provider="cpu", threads=4)
ONE = Runtime(threads=1)


class Stopwatch:
    """Stands in for `time_probes`: a probe takes as many seconds as it has outputs, one with a Tanh cannot be run."""

    def __init__(self) -> None:
        self.timed: list[str] = []
        self.stops_at = ""

    def __call__(self, probes: Sequence[Probe], *_: object) -> Iterator[tuple[Probe, Measurement | None]]:
        for p in probes:
            if str(p) == self.stops_at:
                raise KeyboardInterrupt
            self.timed.append(str(p))
            yield p, None if "Tanh" in p.epilogue else Measurement(float(p.links[-1].outputs), 0.25)


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(latency_table, "time_probes", watch)
    return watch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hmc_onnx" / "latency"


def test_a_probe_is_measured_once(stopwatch: Stopwatch) -> None:
    table = LatencyTable(machine=MACHINE)
    probes = [probe(), probe(16, 24), probe(), probe(16, 16, 8, "Tanh")]
    table.measure(iter(probes), CPU)
    assert stopwatch.timed == [str(probes[0]), str(probes[1]), str(probes[3])]
    assert table.entries == {
        str(probes[0]): ProbeTime(seconds=16.0, uncertainty=0.25),
        str(probes[1]): ProbeTime(seconds=24.0, uncertainty=0.25),
        str(probes[3]): ProbeTime(seconds=None),
    }
    table.measure([*probes, probe(16, 32)], CPU)
    assert stopwatch.timed[3:] == [str(probe(16, 32))]
    assert [table.seconds(p) for p in (*probes, probe(16, 64))] == [16.0, 24.0, 16.0, None, None]


def test_of_the_times_of_a_probe_the_lowest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(*seconds: float) -> None:
        found = [(probe(), Measurement(value, 0.0)) for value in seconds]
        monkeypatch.setattr(latency_table, "time_probes", lambda *_: iter(found))

    table = LatencyTable(machine=MACHINE)
    times(3.0, 2.0, 4.0)
    table.measure([probe()], CPU)
    assert table.seconds(probe()) == 2.0
    times(2.5, 1.0)  # of an earlier call, beside what is asked for now
    table.measure([probe(16, 24)], CPU)
    assert table.seconds(probe()) == 1.0
    times(1.5)
    table.measure_again([probe()], CPU)
    assert table.seconds(probe()) == 1.0


def test_what_is_measured_is_kept_on_the_way(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LatencyTable(machine=MACHINE)
    found: list[int] = []
    probes = [probe(16, n) for n in (8, 16, 24)]
    table.measure(probes, CPU, kept=lambda: found.append(len(table.entries)))
    assert found == [3]  # it has taken less than a second
    table.measure(probes, CPU, kept=lambda: pytest.fail("there is nothing new"))
    monkeypatch.setattr(latency_table, "KEPT_EVERY", -1.0)
    stopwatch.stops_at = str(probe(16, 48))
    with pytest.raises(KeyboardInterrupt):
        table.measure([probe(16, n) for n in (32, 40, 48)], CPU, kept=lambda: found.append(len(table.entries)))
    assert found == [3, 4, 5]


@pytest.mark.parametrize(
    ("entry", "usable"),
    [
        (ProbeTime(seconds=1e-5), True),
        (ProbeTime(seconds=1e-5, uncertainty=0.4e-5), True),
        (ProbeTime(seconds=1e-5, uncertainty=0.5e-5), False),
        (ProbeTime(seconds=1e-5, uncertainty=2e-5), False),
        (ProbeTime(seconds=0.0), False),
        (ProbeTime(seconds=None), False),
    ],
)
def test_a_time_that_drowns_in_its_noise_is_not_used(entry: ProbeTime, usable: bool) -> None:
    assert entry.usable == usable
    assert LatencyTable(machine=MACHINE, entries={str(probe()): entry}).seconds(probe()) == (
        entry.seconds if usable else None
    )


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    entries = {
        str(probe(16, 16, 8, "Add", "Relu")): ProbeTime(seconds=1.2345678901e-5, uncertainty=1e-7),
        "whole": ProbeTime(seconds=None),
    }
    table = LatencyTable(machine=MACHINE, entries=entries)
    path = tmp_path / "a" / "b" / "table.json"
    table.write(path)
    assert read_table(path) == table
    assert read_table(path).digest() == table.digest()
    assert "float32 1×16×8×8 > 16 3×3 p1 > Add > Relu" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_tables_that_differ_have_digests_that_differ() -> None:
    tables = [
        LatencyTable(machine=MACHINE),
        LatencyTable(machine=MACHINE.model_copy(update={"threads": 2})),
        LatencyTable(machine=MACHINE, entries={"a": ProbeTime(seconds=1.0)}),
        LatencyTable(machine=MACHINE, entries={"a": ProbeTime(seconds=2.0)}),
        LatencyTable(machine=MACHINE, entries={"b": ProbeTime(seconds=1.0)}),
    ]
    assert len({t.digest() for t in tables}) == len(tables)
    assert LatencyTable(machine=MACHINE).digest() == tables[0].digest()


OWN = MACHINE.model_dump_json()
BROKEN = {
    "empty": ("", "as it is no JSON"),
    "cut off": (f'{{"machine": {OWN}, "entr', "as it is no JSON"),
    "a list": ("[]", "at the file, input should be"),
    "of nobody": ("{}", "at machine, field required"),
    "of later days": (f'{{"version": 2, "machine": {OWN}}}', "at version, input should be 1"),
    "with something else": (f'{{"machine": {OWN}, "seconds": 1}}', "at seconds, extra inputs are not permitted"),
    "with words": (f'{{"machine": {OWN}, "entries": {{"a > b": {{"seconds": "x"}}}}}}', "at entries.a > b.seconds, "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_table_is_said_in_one_sentence(tmp_path: Path, what: str) -> None:
    text, said = BROKEN[what]
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"\A'{path}' is not a latency table[:,] {said}[^\n]*\Z"):
        read_table(path)


def test_a_table_that_cannot_be_read_is_said_in_one_sentence(tmp_path: Path) -> None:
    binary = tmp_path / "table.onnx"
    binary.write_bytes(b"\x08\xff\xfe")
    for path, said in (
        (tmp_path / "no", f"the latency table '{tmp_path / 'no'}' does not exist: "),
        (tmp_path, rf"cannot read the latency table '{tmp_path}' \(Is a directory\): "),
        (binary, f"'{binary}' is not a latency table, as it is no text: "),
    ):
        with pytest.raises(SettingsError, match=rf"\A{said}[^\n]*\Z"):
            read_table(path)


def test_a_table_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=rf"\Acannot write '{tmp_path}' \([^\n]+\): [^\n]+\Z"):
        LatencyTable(machine=MACHINE).write(tmp_path)


def test_each_machine_has_its_own_table_in_the_cache(cache: Path) -> None:
    changes = ({"processor": "Another"}, {"onnxruntime": "1.21.0"}, {"provider": "cuda"}, {"threads": 8})
    machines = [MACHINE, *(MACHINE.model_copy(update=change) for change in changes)]
    paths = [cached_table(machine)[1] for machine in machines]
    assert len(set(paths)) == len(machines)
    assert {path.parent for path in paths} == {cache}
    assert paths[0].name.startswith("a-processor-2-5-ghz-cpu-4-")
    assert cached_table(MACHINE.model_copy())[1] == paths[0]
    assert cached_tables() == []
    for machine, path in zip(machines, paths, strict=True):
        LatencyTable(machine=machine, entries={machine.processor: ProbeTime(seconds=1.0)}).write(path)
    assert cached_tables() == sorted(paths)
    for machine in machines:
        assert cached_table(machine)[0].entries.keys() == {machine.processor}


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, ""):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if value is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cached_table(MACHINE)[1].parent == tmp_path / ".cache" / "hmc_onnx" / "latency"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", LatencyTable(machine=MACHINE).model_dump_json()[:-3].encode()])
def test_a_damaged_table_in_the_cache_is_an_empty_one(cache: Path, content: bytes) -> None:
    table, path = cached_table(MACHINE)
    assert table == LatencyTable(machine=MACHINE)
    table.write(path)
    path.write_bytes(content)
    assert cached_table(MACHINE) == (table, path)


def test_a_table_of_another_machine_in_the_cache_is_an_empty_one(cache: Path) -> None:
    path = cached_table(MACHINE)[1]
    other = MACHINE.model_copy(update={"threads": 8})
    LatencyTable(machine=other, entries={"a": ProbeTime(seconds=1.0)}).write(path)
    assert cached_table(MACHINE) == (LatencyTable(machine=MACHINE), path)


WRITER = """
import sys
from calib.measure.latency_table import ProbeTime, Machine, cached_table
machine, number = Machine.model_validate_json(sys.argv[1]), sys.argv[2]
table, path = cached_table(machine)
print("read", flush=True)
sys.stdin.readline()
for i in range(20):
    table.put(f"{number}/{i}", ProbeTime(seconds=1.0))
    table.add_to(path)
"""


def test_runs_that_write_at_once_lose_nothing_of_each_other(cache: Path) -> None:
    command = [sys.executable, "-c", WRITER, OWN]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(n)], **pipes) for n in range(4)]
    for writer in writers:  # all have read the table before the first of them writes
        assert writer.stdout.readline() == "read\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert cached_table(MACHINE)[0].entries.keys() == {f"{n}/{i}" for n in range(4) for i in range(20)}


def test_what_another_run_has_mended_or_cleared_is_not_written_back(cache: Path) -> None:
    old, path = cached_table(MACHINE)
    for key in ("busy", "cleared"):
        old.put(key, ProbeTime(seconds=9.0))
    old.add_to(path)
    late = cached_table(MACHINE)[0]
    LatencyTable(machine=MACHINE, entries={"busy": ProbeTime(seconds=1.0)}).write(path)
    late.put("new", ProbeTime(seconds=2.0))
    late.add_to(path)
    assert cached_table(MACHINE)[0].entries == {"busy": ProbeTime(seconds=1.0), "new": ProbeTime(seconds=2.0)}
    assert late.entries.keys() == {"busy", "cleared", "new"}


@pytest.mark.parametrize("content", [b"", b"{", LatencyTable(machine=MACHINE).model_dump_json().encode()[:-5]])
def test_a_damaged_file_that_is_added_to_is_written_anew(cache: Path, content: bytes) -> None:
    table, path = cached_table(MACHINE)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    table.put("a", ProbeTime(seconds=1.0))
    table.add_to(path)
    assert cached_table(MACHINE)[0].entries == {"a": ProbeTime(seconds=1.0)}


def test_a_file_that_cannot_be_added_to_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LatencyTable(machine=MACHINE)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=rf"\Acannot make the folder of '{tmp_path}/file/table' \([^\n]+\Z"):
        table.add_to(tmp_path / "file" / "table")
    monkeypatch.setattr(latency_table, "LOCK_TIMEOUT", 0.0)
    path = tmp_path / "table.json"
    with FileLock(f"{path}.lock", is_singleton=False), pytest.raises(OutputError, match=r"\Acannot lock '[^\n]+\Z"):
        table.add_to(path)


def test_a_user_without_a_home_has_a_temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # an id that has no entry
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table, path = cached_table(MACHINE)
    assert path.is_relative_to(tmp_path)
    table.put("a", ProbeTime(seconds=1.0))
    table.add_to(path)
    assert cached_tables() == [path]


def test_this_machine_is_the_processor_onnxruntime_and_the_threads_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = this_machine(CPU)
    assert (found.onnxruntime, found.provider, found.threads) == (ort.__version__, "cpu", 7)
    assert found.processor and found.processor == this_machine(ONE).processor
    assert this_machine(Runtime(threads=3)).threads == 3
    assert str(MACHINE) == "A Processor @ 2.5 GHz, onnxruntime 1.20.0, cpu, 4 threads"
    with pytest.raises(SettingsError, match="unknown provider 'gpu'"):
        this_machine(Runtime("gpu"))
