"""Jobs on slides, in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.synchronize import Event
from typing import TypeVar

from histoloom.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Pool:
    """Up to ``count`` processes, started when there is first work for two; None means one a core.

    They are fresh processes (spawned, since OpenSlide and torch do not survive a fork), so what they run must be
    importable. One works in this process.
    """

    def __init__(self, count: int | None) -> None:
        self._count = count or os.cpu_count() or 1
        self._context = multiprocessing.get_context("spawn")
        self._executor: ProcessPoolExecutor | None = None
        self._started: Event | None = None

    def results(self, function: Callable[[Job], Result], *, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Number and result of each job, as they come."""
        if min(self._count, len(jobs)) <= 1:
            yield from ((index, function(job)) for index, job in enumerate(jobs))
            return
        try:
            numbers = {self._processes(len(jobs)).submit(function, job): index for index, job in enumerate(jobs)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(self._broken()) from error

    def close(self) -> None:
        """Drop the jobs that have not begun, and end the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _processes(self, jobs: int) -> ProcessPoolExecutor:
        if self._executor is None:
            self._started = self._context.Event()
            self._executor = ProcessPoolExecutor(
                min(self._count, jobs), mp_context=self._context, initializer=_begin, initargs=(self._started,)
            )
        return self._executor

    def _broken(self) -> str:
        fewer = f"--set runtime.workers={max(1, self._count // 2)}"
        if self._started is not None and not self._started.is_set():
            return (
                "the processes that read slides ended before they could begin: a script that calls histoloom must do "
                'so under if __name__ == "__main__":, since each of them imports it (else memory is short: '
                f"{fewer})"
            )
        return (
            "a process that read slides was ended from outside, most often for want of memory; run the same "
            f"command again with fewer of them: {fewer}"
        )


def _begin(started: Event) -> None:
    """Say that this process has begun, and end it when its parent is killed: it would else wait for jobs for ever."""
    started.set()
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"
    threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
