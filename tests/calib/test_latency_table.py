"""Probes are timed kernel by kernel, each once a machine, and their times come back from a file."""

from __future__ import annotations

import platform
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cpuinfo
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from filelock import FileLock

from calib.measure import latency_table, probing
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
from calib.measure.probing import time_probes
from calib.runtime.sessions import CPU, KernelTime, Runtime, Session
from passes.core.errors import ModelError, OutputError, SettingsError
from passes.graph.layers import Geometry
from passes.probe import WITHIN_INT8, Probe, probe_model

MACHINE = Machine(processor="A Processor @ 2.5 GHz", onnxruntime="1.20.0", provider="cpu", threads=4)
ONE = Runtime(threads=1)


def probe(inputs: int = 16, outputs: int = 16, size: int = 8, *follows: str) -> Probe:
    """A 3×3 Conv."""
    return Probe((Geometry(inputs, outputs, (3, 3), (1, 1), (1,) * 4, (1, 1)),), (size, size), 1, epilogue=follows)


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


def test_a_processor_that_cannot_be_asked_for_has_its_architecture_as_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert latency_table._processor()
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert latency_table._processor.__wrapped__() == platform.machine()


def test_processors_of_one_name_are_kept_apart_by_what_they_do_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for flags in (["avx512f"], ["avx512f", "avx512_vnni"], ["avx512f", "avx512_vnni", "amx_int8"]):
        monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda flags=flags: {"brand_raw": "Fast", "flags": flags})
        found.add(latency_table._processor.__wrapped__())
    assert found == {"Fast avx512f", "Fast avx512f avx512_vnni", "Fast avx512f amx_int8"}


def test_this_machine_is_the_processor_onnxruntime_and_the_threads_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = this_machine(CPU)
    assert (found.onnxruntime, found.provider, found.threads) == (ort.__version__, "cpu", 7)
    assert found.processor and found.processor == this_machine(ONE).processor
    assert this_machine(Runtime(threads=3)).threads == 3
    assert str(MACHINE) == "A Processor @ 2.5 GHz, onnxruntime 1.20.0, cpu, 4 threads"
    with pytest.raises(SettingsError, match="unknown provider 'gpu'"):
        this_machine(Runtime("gpu"))


def test_more_work_takes_longer() -> None:
    probes = [
        probe(32, 32, 8),
        probe(32, 32, 32),
        probe(32, 32, 32, "Add", "Relu"),
        Probe((Geometry(512, 512),), (), 8),
    ]
    assert probes[1].macs == 16 * probes[0].macs
    found = dict(time_probes(probes, ONE))
    assert found.keys() == set(probes)
    seconds = [found[p].value for p in probes]
    assert all(s > 0 for s in seconds)
    assert seconds[1] > 2 * seconds[0]


def test_a_probe_timed_as_a_session_takes_longer_than_no_time() -> None:
    (found,) = probing._by_session([probe(64, 64, 24)], ONE)
    assert found.value > 0


def test_a_probe_that_onnxruntime_cannot_run_has_no_time_and_the_others_of_its_lot_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def session(model: onnx.ModelProto, *arguments: object, **options: object) -> Session:
        if any(n.op_type == "Tanh" for n in model.graph.node):
            raise ModelError("onnxruntime cannot load the model: it has a Tanh")
        return Session(model, *arguments, **options)

    monkeypatch.setattr(probing, "Session", session)
    probes = [probe(), probe(16, 16, 8, "Tanh"), probe(16, 24), probe(16, 32, 8, "Add", "Tanh")]
    found = list(time_probes(probes, ONE))
    assert [p for p, _ in found] == probes
    assert [time is not None and time.value > 0 for _, time in found] == [True, False, True, False]


def test_a_geometry_that_does_not_fit_its_size_has_no_time() -> None:
    large = Probe((Geometry(8, 8, (5, 5), (1, 1), (0,) * 4, (1, 1)),), (3, 3), 1)
    found = dict(time_probes([large, probe()], ONE))
    assert found[large] is None
    assert found[probe()].value > 0


def test_probes_share_a_session_with_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    lots: list[list[Probe]] = []

    def timed(lot: list[Probe], *_: object) -> list[Measurement]:
        lots.append(lot)
        return [Measurement(p.batch, 0.0) for p in lot]

    monkeypatch.setattr(probing, "_time_lot", timed)
    monkeypatch.setattr(probing, "LOT_PROBES", 3)
    monkeypatch.setattr(probing, "LOT_MACS", 4e6)
    probes = [
        replace(probe(16, n, size), batch=batch, dtype=dtype)
        for n, size, batch, dtype in [
            *((n, 2, 1, "float32") for n in range(1, 8)),
            *((n, 2, 2, "float32") for n in range(1, 3)),
            *((n, 2, 1, "float16") for n in range(1, 3)),
            *((16, size, 1, "float32") for size in (30, 31, 32)),
        ]
    ]
    steps: list[tuple[str, int, int]] = []
    found = list(time_probes(probes, CPU, lambda *step: steps.append(step)))
    assert sorted(str(p) for p, _ in found) == sorted(map(str, probes))
    assert all(time.value == p.batch for p, time in found)
    for lot in lots:
        assert len({(p.batch, p.dtype) for p in lot}) == 1
        assert len(lot) == 1 or (len(lot) <= 3 and sum(p.macs for p in lot) <= 4e6)
    assert len(lots) < len(probes) / 2 + 3
    assert [done for _, done, _ in steps] == [0, *np.cumsum([len(lot) for lot in lots])]
    assert {(what, of) for what, _, of in steps} == {("latency", len(probes))}
    assert list(time_probes([], CPU)) == []


def test_a_lot_is_run_again_while_what_all_lots_have_takes_longer_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "TRIES", 5)
    monkeypatch.setattr(probing, "_references", {})
    tries: list[list[float]] = []  # of two probes and the reference
    monkeypatch.setattr(probing, "_run_lot", lambda *_: [Measurement(value, 0.0) for value in tries.pop(0)])

    def values() -> list[float]:
        return [e.value for e in probing._by_kernel([probe(), probe(16, 24)], CPU)]

    tries += [[5.0, 6.0, 1.0]]
    assert values() == [5.0, 6.0]
    tries += [[9.0, 9.0, 1.5], [7.0, 3.0, 1.2], [8.0, 8.0, 1.01]]
    assert values() == [7.0, 3.0]
    tries += [[9.0, 9.0, 2.0], [8.0, 9.5, 1.95]]  # the load lasts
    assert values() == [8.0, 9.0]
    tries += [[9.0 - i, 9.0, 9.0 - i] for i in range(5)]
    assert values() == [5.0, 9.0]
    assert tries == []


# Each kernel takes another power of two, so that a sum tells which kernels are in it.
FIRST = [
    KernelTime(name, "", 2.0**i)
    for i, name in enumerate(
        [
            "ReorderInput",  # of the model's input
            "0/before_nchwc",
            "ReorderOutput_token_1",
            "0/link0_nchwc",
            "ReorderOutput",
            "0/Relu_nchwc",  # the last link, with the Relu
            "ReorderOutput_token_2",
            "0/after_nchwc",
            "ReorderInput_token_6",  # behind the layer behind the links
            "0/pool_nchwc",
            "ReorderOutput_token_3",  # of the model's output
            "ReorderInput_token_4",
            "1/before",
            "1/other",
            "1/link0",
            "1/Add",
            "HardSigmoid_8",
            "Mul_9",
            "1/after",
            "1/pool",
            "10/before",  # a Gemm, which no pool follows
            "10/link0",
            "fused 10/link1",
            "10/after",
            "ReorderOutput_token_5",
        ]
    )
]
WHAT_COUNTS = {0: [2, 3, 4, 5, 6], 1: [14, 15, 16, 17], 10: [21, 22]}


def test_a_probes_time_is_that_of_the_kernels_between_the_layers_around_it() -> None:
    found = probing._probe_seconds(FIRST, 11)
    assert len(found) == 11
    for i, seconds in enumerate(found):
        np.testing.assert_equal(seconds, [sum(2.0**k for k in WHAT_COUNTS[i]) if i in WHAT_COUNTS else np.nan])


def test_a_kernel_of_less_than_the_profilers_microsecond_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [KernelTime(f"0/{part}", "Conv", 0.0) for part in ("before", "link0", "after")]
    assert probing._probe_seconds(kernels, 1)[0].tolist() == [0.0]
    monkeypatch.setattr(Session, "profile", lambda self: kernels * (probing.WARM_UP + probing.LEAST_RUNS))
    own = probe(16, 16, 8)
    (found,) = probing._run_lot(probe_model([own]), own.dtype, 1, ONE)
    assert found.value == probing.SHORTEST


def test_probes_may_run_in_turns() -> None:
    names = [
        "0/before",
        "1/before",
        "Reorder",
        "0/link0",
        "0/after",
        "0/pool",
        "Reorder",
        "1/link0",
        "1/after",
        "1/pool",
    ]
    found = probing._probe_seconds([KernelTime(name, "", 2.0**i) for i, name in enumerate(names)], 2)
    assert [seconds.tolist() for seconds in found] == [[2.0**2 + 2.0**3], [2.0**7]]


def test_a_cast_of_what_the_links_read_counts_as_theirs() -> None:
    kernels = [
        ("0/before", "QLinearConv"),
        ("Transpose_1", "Transpose"),
        ("0/before_DequantizeLinear", "DequantizeLinear"),
    ]
    kernels += [("0/link0", "FusedConv"), ("0/Relu_QuantizeLinear", "QuantizeLinear"), ("0/after", "QLinearConv")]
    found = probing._probe_seconds([KernelTime(name, op, 2.0**i) for i, (name, op) in enumerate(kernels)], 1)
    assert [seconds.tolist() for seconds in found] == [[2.0**1 + 2.0**2 + 2.0**3 + 2.0**4]]


def test_links_in_float32_within_int8_are_run_so_and_their_neighbours_not() -> None:
    own = Probe((Geometry(8, 8, (1, 1), (1, 1), (0,) * 4, (1, 1)),) * 2, (8, 8), 1, WITHIN_INT8, ("Relu",))
    session = Session(probing._served(probe_model([own]), own, ONE), ONE, profiled=True)
    session.run(probing._feeds(session, own.dtype))
    ops = {k.name: k.op for k in session.profile() if "Conv" in k.op}
    assert sum(op.startswith("QLinear") for op in ops.values()) == 2
    assert sum(not op.startswith("QLinear") for op in ops.values()) == len(own.links)


def test_each_run_has_its_own_times() -> None:
    runs = [[k._replace(seconds=k.seconds * factor) for k in FIRST] for factor in (1, 3, 5)]
    found = probing._probe_seconds([k for run in runs for k in run], 11)
    for i, counts in WHAT_COUNTS.items():
        assert found[i].tolist() == [factor * sum(2.0**k for k in counts) for factor in (1, 3, 5)]


def test_every_kernel_of_a_real_profile_finds_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    follows = [(), ("Relu",), ("Add", "Relu"), ("HardSwish",), ("Add", "Clip")]
    probes = [probe(16, 16, 8, *f) for f in follows]
    probes += [Probe((Geometry(32, 4), Geometry(4, 10)), (), 1, epilogue=f) for f in follows]
    probes += [Probe((Geometry(8, 12, (3,), (1,), (1, 1), (1,)),), (9,), 1, epilogue=f) for f in follows]
    monkeypatch.setattr(probing, "undisturbed", lambda seconds: seconds)
    for seconds in probing._run_lot(probe_model(probes), probes[0].dtype, len(probes), ONE):
        assert seconds.shape == (probing.LEAST_RUNS,)
        assert seconds.sum() > 0  # a kernel of less than a microsecond takes none
