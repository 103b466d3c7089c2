"""Runs independent tasks in processes of this machine, or with joblib on an existing Dask or Ray cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib

from hmc_onnx.execution.checkpoint import Checkpoint
from hmc_onnx.execution.worker_processes import WorkerProcesses
from hmc_onnx.records.work import Work
from passes.core.blas import one_blas_thread
from passes.core.errors import SettingsError
from passes.core.shelf import MEMORY, Shelf

__all__ = ["Pool", "Task", "pool"]

# Makes a function and its arguments; it is called in this process when the task's turn comes.
Task = Callable[[], tuple[Any, ...]]

# How many times tasks that were lost with a killed worker are run again.
MOST_LOSSES = 3
# For which a Dask scheduler is waited for.
SECONDS_TO_CONNECT = 10


class Pool:
    """Runs tasks, and stores their results in a checkpoint. Use `pool` to make one.

    Args:
        work: where and how the tasks run.
        checkpoint: stores the results.
        folder: folder for values that the tasks share.
        processes: workers on this machine; None: tasks run on joblib's cluster backend, or else in this process.
    """

    def __init__(self, work: Work, checkpoint: Checkpoint, folder: Path, processes: WorkerProcesses | None) -> None:
        self.work, self.checkpoint, self.progress = work, checkpoint, work.progress
        self._folder, self._processes = folder, processes

    @property
    def workers(self) -> int:
        """The number of tasks that run at once."""
        if self.work.backend == "processes":
            return 1 if self._processes is None else self._processes.count
        return int(joblib.effective_n_jobs(None))

    def run(
        self,
        what: str,
        tasks: Mapping[str, Task],
        steps: Mapping[str, int] | None = None,
        here: bool = False,
        costs: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Run the tasks that have no result in the checkpoint yet.

        Args:
            what: name of the work, for the checkpoint and the progress.
            tasks: the tasks by name.
            steps: number of progress steps of each task, by name; default: one each.
            here: whether to run the tasks one after another in this process.
            costs: about how long each task takes, in any unit, by name. The longest begins first, so that at the end
                no worker waits long for another. Default: they begin in their order.

        Returns:
            The result of each task by name, in the order of `tasks`.

        Raises:
            SettingsError: workers were killed more than `MOST_LOSSES` times.
            OutputError: the checkpoint cannot be written.
        """
        results: dict[str, Any] = {}
        of, done = sum(steps.values()) if steps else len(tasks), 0
        for name in tasks:
            if f"{what}/{name}" in self.checkpoint:
                results[name] = self.checkpoint.load(f"{what}/{name}")
                done += steps[name] if steps else 1
        self.progress(what, done, of)
        losses = 0
        order = sorted(tasks, key=lambda name: -costs[name]) if costs else list(tasks)
        while waiting := [name for name in order if name not in results]:
            try:
                for name, result in self._results({n: tasks[n] for n in waiting}, here):
                    results[name] = result
                    self.checkpoint.save(f"{what}/{name}", result)
                    done += steps[name] if steps else 1
                    self.progress(what, done, of)
            except BrokenProcessPool as e:  # a worker was killed: the unfinished tasks run again
                losses += 1
                if losses > MOST_LOSSES or self._processes is None:
                    raise SettingsError(
                        f"worker processes were killed {losses} times during '{what}', most likely as memory ran out: "
                        "give fewer `jobs`, or less `memory`"
                    ) from e
                self._processes.restart()
        return {name: results[name] for name in tasks}

    def _results(self, tasks: Mapping[str, Task], here: bool) -> Iterator[tuple[str, Any]]:
        if here or self.workers == 1:
            yield from (_call(name, *task()) for name, task in tasks.items())
            return
        if self._processes is not None:
            yield from self._processes.run((_call, (name, *task())) for name, task in tasks.items())
            return
        calls = (joblib.delayed(_call)(name, *task()) for name, task in tasks.items())
        if self.work.backend == "ray":  # joblib on Ray returns no result before all are done
            while some := list(itertools.islice(calls, 4 * self.workers)):
                yield from joblib.Parallel(batch_size=1)(some)
            return
        # at most one more task than workers is dispatched, because the arguments are large
        yield from joblib.Parallel(return_as="generator_unordered", pre_dispatch="n_jobs + 1", batch_size=1)(calls)

    def renew(self) -> None:
        """Replace the workers on this machine by new ones, which frees all that they hold in memory."""
        if self._processes is not None:
            self._processes.restart()

    def shelf(self) -> Shelf:
        """A shelf in the checkpoint's folder or a temporary one; in memory on a cluster, which cannot read our disk."""
        if self.work.backend != "processes":
            return MEMORY
        folder = self.checkpoint.arrays or self._folder / "arrays"
        folder.mkdir(exist_ok=True)
        return Shelf(folder)

    def share(self, name: str, value: Any, here: bool = False) -> Callable[[], Any]:
        """Share a large value among tasks, so that it is sent to each worker only once.

        Args:
            name: name of the value.
            value: the value.
            here: whether the tasks run in this process, as for `run`.

        Returns:
            A small function to pass to the tasks in place of the value; it returns the value.
        """
        if here or self.workers == 1 or self.work.backend == "dask":
            return _Value(value)
        if self.work.backend == "ray":
            import ray  # noqa: PLC0415  an extra

            return _Reference(ray.put(value))
        path = self._folder / f"{name}.joblib"
        joblib.dump(value, path)
        return _File(str(path))


class _Value:
    """Holds the value itself. Dask asks for the size, and sends a large object once and on from worker to worker."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value

    def __sizeof__(self) -> int:
        return int(self.value.__sizeof__())


@dataclass(frozen=True)
class _Reference:
    reference: Any

    def __call__(self) -> Any:
        import ray  # noqa: PLC0415

        return ray.get(self.reference)


@dataclass(frozen=True)
class _File:
    path: str

    def __call__(self) -> Any:
        return joblib.load(self.path, mmap_mode="r")


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    with one_blas_thread():
        return name, function(*arguments)


@contextmanager
def pool(work: Work, checkpoint: Checkpoint) -> Iterator[Pool]:
    """A pool whose workers live within the context; they are ended afterwards, also after an error.

    Raises:
        SettingsError: the backend is not installed, or its cluster does not answer.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="hmc_onnx-")))
        workers = stack.enter_context(_BACKENDS[work.backend](work))
        yield Pool(work, checkpoint, folder, workers if isinstance(workers, WorkerProcesses) else None)


@contextmanager
def _processes(work: Work) -> Iterator[WorkerProcesses | None]:
    count = work.jobs or joblib.cpu_count()
    if count == 1:
        yield None
        return
    processes = WorkerProcesses(count)
    try:
        yield processes
    except BaseException:
        processes.kill()
        raise
    processes.close()


@contextmanager
def _dask(work: Work) -> Iterator[None]:
    try:
        from distributed import Client  # noqa: PLC0415  an extra
    except ImportError as e:
        raise SettingsError("`backend='dask'` needs Dask: pip install 'hmc-onnx[dask]'") from e
    if work.address is None:
        raise SettingsError("`backend='dask'` needs the scheduler's `address`, such as tcp://10.0.0.1:8786")
    try:
        client = Client(work.address, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as e:
        raise SettingsError(f"no Dask scheduler answers at '{work.address}': give its `address`") from e
    with client, joblib.parallel_config("dask", n_jobs=-1, client=client):
        yield


@contextmanager
def _ray(work: Work) -> Iterator[None]:
    try:
        import ray  # noqa: PLC0415  an extra
        from ray.util.joblib import register_ray  # noqa: PLC0415
    except ImportError as e:
        raise SettingsError("`backend='ray'` needs Ray: pip install 'hmc-onnx[ray]'") from e
    if work.address is None:
        raise SettingsError("`backend='ray'` needs the cluster's `address`, such as auto or 10.0.0.1:6379")
    theirs = ray.is_initialized()  # whether the caller has connected to the cluster
    if not theirs:
        try:
            ray.init(address=work.address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise SettingsError(f"no Ray cluster answers at '{work.address}': give its `address`") from e
    register_ray()
    try:
        with joblib.parallel_config("ray", n_jobs=-1):
            yield
    finally:
        if not theirs:
            ray.shutdown()


_BACKENDS = {"processes": _processes, "dask": _dask, "ray": _ray}
