"""The threads of a session are the cores that the process may use, and the number that is said is the number there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import loky
import pytest

from calib.runtime import threads
from calib.runtime.sessions import Runtime
from calib.runtime.threads import default_threads


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four cores with two hardware threads each: 0 and 4, 1 and 5, ..., all of which may be used."""
    for n in range(8):
        folder = tmp_path / f"cpu{n}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{n % 4},{n % 4 + 4}\n")
    monkeypatch.setattr(threads, "TOPOLOGY", tmp_path)
    allow(monkeypatch, *range(8))
    return monkeypatch


def allow(monkeypatch: pytest.MonkeyPatch, *processors: int, quota: int | None = None) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(processors), raising=False)
    monkeypatch.setattr(loky, "cpu_count", lambda **_: min(len(processors), quota or len(processors)))


@pytest.mark.parametrize(
    ("processors", "quota", "expected"),
    [
        (range(8), None, 4),
        ((0, 1, 2, 3), None, 4),
        ((0, 4), None, 1),
        ((0, 4, 5), None, 2),
        (range(8), 3, 3),
        (range(8), 1, 1),
        ((0, 4), 2, 1),
    ],
)
def test_physical_cores_count_that_affinity_and_quota_allow(
    machine: pytest.MonkeyPatch, processors: tuple[int, ...], quota: int | None, expected: int
) -> None:
    allow(machine, *processors, quota=quota)
    assert default_threads() == expected


def test_a_system_that_does_not_tell_its_topology_is_asked_through_loky(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.setattr(threads, "TOPOLOGY", tmp_path / "none")
    machine.setattr(loky, "cpu_count", lambda only_physical_cores=False: 3 if only_physical_cores else 6)
    assert default_threads() == 3


@pytest.mark.parametrize(
    ("value", "expected"), [("3", 3), ("16", 16), ("3,2", 3), (" 2 ", 2), ("", 4), ("0", 4), ("-1", 4), ("many", 4)]
)
def test_openmps_variable_goes_before_the_cores(machine: pytest.MonkeyPatch, value: str, expected: int) -> None:
    machine.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == expected
    assert Runtime().threads_used == expected
    assert Runtime(threads=5).threads_used == 5


COUNTED = """
import os
import sys
from onnx import TensorProto, helper
from calib.runtime.sessions import Runtime, Session

value = helper.make_tensor_value_info
node = helper.make_node("Relu", ["x"], ["y"])
graph = helper.make_graph([node], "", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
before = len(os.listdir("/proc/self/task"))
session = Session(model, Runtime(threads=int(sys.argv[1])))
print(len(os.listdir("/proc/self/task")) - before + 1, Runtime(threads=int(sys.argv[1])).threads_used)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(("asked", "variable"), [(0, None), (0, "3"), (3, "2"), (1, None)])
def test_onnxruntime_has_the_threads_that_are_said(asked: int, variable: str | None) -> None:
    environment = os.environ | ({} if variable is None else {"OMP_NUM_THREADS": variable})
    found = subprocess.run(
        [sys.executable, "-c", COUNTED, str(asked)], env=environment, capture_output=True, text=True, check=True
    )
    there, said = found.stdout.split()
    assert there == said
    assert found.stderr == ""
