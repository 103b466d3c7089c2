"""Independent tasks, run in processes by joblib."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor

from passes.progress import Progress

__all__ = ["run_tasks", "workers"]


@contextmanager
def workers() -> Iterator[None]:
    """Within it, `run_tasks` keeps its processes; behind it they are gone, whatever happened."""
    # Large arrays are sent, not mapped: mapped ones would outlive workers that are killed, in /dev/shm.
    try:
        with joblib.parallel_config("loky", n_jobs=-1, inner_max_num_threads=1, max_nbytes=None):
            with _interrupts_ignored():
                joblib.Parallel()(joblib.delayed(int)() for _ in range(joblib.cpu_count()))
            yield
    except BaseException:
        get_reusable_executor().shutdown(wait=False, kill_workers=True)
        raise
    get_reusable_executor().shutdown(wait=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started within it leave an interrupt at the terminal, which all of them get, to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_tasks(what: str, tasks: Sequence[Callable[[], Any]], progress: Progress) -> list[Any]:
    """The tasks' results in order; one BLAS thread a process, as small matrices gain nothing from more."""
    results = []
    for result in joblib.Parallel(return_as="generator")(joblib.delayed(_call)(task) for task in tasks):
        results.append(result)
        progress(what, len(results), len(tasks))
    return results


def _call(task: Callable[[], Any]) -> Any:
    return task()
