"""Worker processes on this machine: a `ProcessPoolExecutor` of our own, independent of the caller's executors."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from loky.backend import get_context

__all__ = ["Call", "WorkerProcesses"]

Call = tuple[Callable[..., Any], tuple[Any, ...]]

# Seconds between a worker's checks that its parent is alive.
PARENT_CHECK = 1.0
# The most workers that a ProcessPoolExecutor supports on Windows.
WINDOWS_LIMIT = 61


class WorkerProcesses:
    """`count` worker processes, which live until `close` or `kill`.

    loky's multiprocessing context starts the processes, so that a script that calls us needs no
    `if __name__ == "__main__"`: "spawn" of the standard library would run the script again in every worker, and "fork"
    would copy locks that onnxruntime's threads hold. The executor is that of the standard library, because loky's
    replaces a worker that has grown by 300 MB, and our workers keep sessions and activations from task to task.
    """

    def __init__(self, count: int) -> None:
        self.count = min(count, WINDOWS_LIMIT) if sys.platform == "win32" else count
        self._start()

    def _start(self) -> None:
        context = get_context("loky")
        # The workers hold the reading end, and exit when the writing end is closed, by us or because we died.
        self._reading, self._writing = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            self.count, mp_context=context, initializer=_begin_worker, initargs=(self._reading, os.getpid())
        )
        try:
            with _interrupts_ignored():  # the executor starts a process for each task that finds no idle one
                started = [self._executor.submit(int) for _ in range(self.count)]
            wait(started)
        except BaseException:
            self.kill()
            raise

    def run(self, calls: Iterable[Call]) -> Iterator[Any]:
        """Yield the results of calls, in the order in which the calls finish.

        The iterable is read only as far as needed: one call for each worker and one that waits, because arguments may
        be large.

        Raises:
            BrokenProcessPool: a worker was killed; `restart` before the next run.
        """
        calls = iter(calls)
        running: set[Future[Any]] = set()
        try:
            while True:
                for function, arguments in islice(calls, self.count + 1 - len(running)):
                    running.add(self._executor.submit(function, *arguments))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: f.exception() is not None):  # results before errors
                    yield future.result()
        finally:
            for future in running:
                future.cancel()

    def restart(self) -> None:
        """End the workers and start new ones, which frees all that they hold in memory."""
        self.close()
        self._start()

    def close(self) -> None:
        """Wait for the running tasks, and end the workers."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._writing.close()
        self._reading.close()

    def kill(self) -> None:
        """End the workers at once, even in the middle of a task."""
        self._writing.close()
        self.close()


def _begin_worker(leash: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal reaches the parent, which ends us
    threading.Thread(target=_end_with_parent, args=(leash, parent), daemon=True).start()


def _end_with_parent(leash: Connection, parent: int) -> None:
    try:
        # The parent's id is checked, too, because a process that the caller forked may hold the writing end open.
        while not leash.poll(PARENT_CHECK) and os.getppid() == parent:
            pass
    except OSError:  # on Windows, poll raises when the pipe is closed
        pass
    os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that are started within the context ignore Ctrl-C at the terminal, which would reach all of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
