"""Work in processes and on a cluster: the same results, whoever does it, and whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from worker_tasks import always_killed, doubled, grown, killed_once
from zoo import images, resnet

import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure import sensitivity
from hmc_onnx.execution import context, executor
from hmc_onnx.execution.checkpoint import Checkpoint
from hmc_onnx.execution.executor import Pool, pool
from hmc_onnx.records.work import Work
from passes.core import shelf
from passes.core.errors import SettingsError

SETTINGS = hmc_onnx.Settings(samples=32, kl_samples=32, positions=8, align=4, chunk=16, fine=False, provider="cpu")
NOWHERE = Checkpoint(None, {})


@pytest.fixture(scope="module")
def workers() -> Iterator[Pool]:
    with pool(Work(jobs=2), NOWHERE) as found:
        yield found


def test_results_are_in_the_order_of_the_tasks(workers: Pool) -> None:
    names = [str(i) for i in range(20)]
    found = workers.run("numbers", {n: (lambda n=n: (doubled, int(n))) for n in names})
    assert list(found.items()) == [(n, 2 * int(n)) for n in names]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_longest_tasks_begin_first_and_results_stay_in_the_order_of_the_tasks(jobs: int) -> None:
    begun: list[int] = []
    tasks = {str(i): (lambda i=i: begun.append(i) or (doubled, i)) for i in range(4)}
    with pool(Work(jobs=jobs), NOWHERE) as own:
        found = own.run("numbers", tasks, costs={"0": 1, "1": 4, "2": 1, "3": 9})
    assert begun == [3, 1, 0, 2]
    assert list(found) == ["0", "1", "2", "3"]


def test_a_killed_worker_costs_time_and_no_results(workers: Pool, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    tasks = {str(i): (lambda i=i: (killed_once, mark, i) if i == 3 else (doubled, i)) for i in range(6)}
    assert workers.run("numbers", tasks) == {str(i): 2 * i for i in range(6)}
    assert Path(mark).exists()


def test_workers_that_are_killed_again_and_again_end_in_a_sentence(
    workers: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MOST_LOSSES", 1)
    with pytest.raises(SettingsError, match=r"were killed 2 times during 'numbers', .+: give fewer `jobs`"):
        workers.run("numbers", {str(i): (lambda i=i: (always_killed, i)) for i in range(2)})
    workers.renew()


def test_a_worker_that_holds_much_stays_until_it_is_renewed(workers: Pool) -> None:
    tasks = {str(i): (lambda m=m: (grown, m)) for i, m in enumerate((1, 1, 400, 400, 1, 1))}
    before = set(workers.run("grown", tasks).values())
    assert len(before) == 2
    workers.renew()
    assert not before & set(workers.run("grown anew", {"0": lambda: (grown, 1)}).values())


def test_what_is_shared_arrives(workers: Pool) -> None:
    get = workers.share("value", {"a": 1})
    assert workers.run("shared", {"0": lambda: (get,)}) == {"0": {"a": 1}}


def test_what_is_in_the_journal_is_not_done_again_and_progress_counts_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "work", {"model": "m"})
    seen: list[tuple[str, int, int]] = []
    for expected in ([0, 1, 3, 6], [6]):
        with (
            pool(Work(jobs=1, progress=lambda *step: seen.append(step)), checkpoint) as own,
            joblib.parallel_config(n_jobs=1),
        ):
            tasks = {str(i): (lambda i=i: (doubled, i)) for i in range(3)}
            assert own.run("numbers", tasks, {str(i): i + 1 for i in range(3)}) == {"0": 0, "1": 2, "2": 4}
        assert [done for _, done, of in seen if of == 6] == expected
        seen.clear()


@pytest.fixture(scope="module")
def reference() -> hmc_onnx.Profile:
    return hmc_onnx.profile(resnet((1,), (8,), size=8), calibration(), SETTINGS, work=Work(jobs=1))


def calibration() -> CalibrationData:
    return CalibrationData({"input": images(32, 8)}, None, "noise")


@pytest.mark.parametrize("shelved", [False, True])
def test_processes_find_what_one_does(
    shelved: bool, reference: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shelved:
        monkeypatch.setattr(context, "SHELVED", 0)
        monkeypatch.setattr(shelf, "SMALL", 0)
    assert hmc_onnx.profile(resnet((1,), (8,), size=8), calibration(), SETTINGS, work=Work(jobs=2)) == reference


def test_a_large_model_is_not_sent_to_processes(reference: hmc_onnx.Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "LARGE", 0)
    where: list[bool] = []
    share = Pool.share
    monkeypatch.setattr(Pool, "share", lambda self, *a: (where.append(a[-1]), share(self, *a))[1])
    found = hmc_onnx.profile(resnet((1,), (8,), size=8), calibration(), SETTINGS, work=Work(jobs=2))
    assert where == [True]
    assert not sensitivity._held
    for own, theirs in zip(found.layers, reference.layers, strict=True):
        nats, expected = ([c.sensitivity for c in layer.choices if c.measured] for layer in (own, theirs))
        assert nats == pytest.approx(expected, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("killed", [False, True])
def test_a_dask_cluster_finds_what_one_process_does(reference: hmc_onnx.Profile, killed: bool) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        victim = next(iter(cluster.workers.values())).process.pid
        done = threading.Event()

        def kill_in_the_middle(what: str, step: int, of: int) -> None:
            if killed and what == "decompositions" and step >= 2 and not done.is_set():
                done.set()
                os.kill(victim, signal.SIGKILL)

        work = Work(backend="dask", address=cluster.scheduler_address, progress=kill_in_the_middle)
        model = resnet((1,), (8,), size=8)
        assert hmc_onnx.profile(model, calibration(), SETTINGS, work) == reference
        assert done.is_set() == killed


PARENT = """
import os, time
from hmc_onnx.execution.checkpoint import Checkpoint
from hmc_onnx.execution.executor import pool
from hmc_onnx.records.work import Work
with pool(Work(jobs=2), Checkpoint(None, {})) as workers:
    pids = workers.run("pids", {str(i): (lambda: (os.getpid,)) for i in range(20)})
    print(*set(pids.values()), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_workers_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [Path("/proc", pid) for pid in parent.stdout.readline().split()]
    assert workers and all(w.exists() for w in workers)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while any(w.exists() for w in workers):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_clusters_that_are_not_there_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "SECONDS_TO_CONNECT", 1)
    with pytest.raises(SettingsError, match="needs the scheduler's `address`"), pool(Work(backend="dask"), NOWHERE):
        pass
    work = Work(backend="dask", address="tcp://127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:1'"), pool(work, NOWHERE):
        pass


def test_what_workers_import_is_little() -> None:
    script = (
        "import sys, calib.measure.sensitivity, hmc_onnx.execution.executor, hmc_onnx.search_space.layer_choices; "
        "assert not {'onnx_ir', 'onnxscript', 'scipy.stats', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
