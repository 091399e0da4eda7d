"""Jobs on slides, spread over processes of this machine or over a cluster, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from histoloom.errors import UserError
from histoloom.slides.workers.dask_cluster import DaskCluster, remove_token

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """Processes that read slides; used with ``with``.

    Without a ``scheduler`` they are up to ``count`` of this machine (None: one a core; one works in this process);
    with one, such as ``tcp://host:8786``, those of its Dask cluster. ``place`` is the folder, absolute, under which
    the jobs write. What they run must be importable. Raises ``UserError`` for both.
    """

    def __init__(self, count: int | None, *, scheduler: str | None = None, place: Path | None = None) -> None:
        if scheduler is not None and count is not None:
            raise UserError(
                f"runtime.workers={count} counts processes of this machine, and runtime.scheduler sends the slides to "
                "others; choose: --set runtime.workers=null, or --set runtime.scheduler=null"
            )
        self._count, self._scheduler, self._place = count, scheduler, place
        self._backend: ProcessPool | DaskCluster | None = None

    def __enter__(self) -> Self:
        if self._place is not None:
            remove_token(self._place)
        if self._scheduler is None:
            self._backend = ProcessPool(self._count)
        else:
            assert self._place is not None, "a cluster needs the folder in which it works"
            self._backend = DaskCluster(self._scheduler, place=self._place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._backend is not None, "entered before"
        self._backend.close()

    def run(self, function: Callable[[Job], Result], *, jobs: Sequence[Job], label: str) -> list[Result]:
        """``function`` of every job, in the jobs' order; what it raises is raised here."""
        assert self._backend is not None, "workers are used with 'with'"
        console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(label, total=len(jobs))
            done: dict[int, Result] = {}
            for index, result in self._backend.results(function, jobs=jobs):
                done[index] = result
                progress.advance(task)
        return [done[index] for index in range(len(jobs))]


class ProcessPool:
    """Up to ``count`` processes of this machine, started when there is first work for two; None means one a core.

    They are fresh processes (spawned, since OpenSlide and torch do not survive a fork), so what they run must be
    importable. A single job runs in this process, and so do all with a ``count`` of 1.
    """

    def __init__(self, count: int | None) -> None:
        self._count = count or os.cpu_count() or 1
        self._context = multiprocessing.get_context("spawn")
        self._executor: ProcessPoolExecutor | None = None
        self._started: Event | None = None

    def results(self, function: Callable[[Job], Result], *, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Number and result of each job, as they come; what ``function`` raises is raised here."""
        if min(self._count, len(jobs)) <= 1:
            yield from ((index, function(job)) for index, job in enumerate(jobs))
            return
        if self._executor is None:
            self._started = self._context.Event()
            self._executor = ProcessPoolExecutor(
                min(self._count, len(jobs)),
                mp_context=self._context,
                initializer=_start_process,
                initargs=(self._started,),
            )
        try:
            numbers = {self._executor.submit(function, job): index for index, job in enumerate(jobs)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool as error:
            fewer = f"--set runtime.workers={max(1, self._count // 2)}"
            if self._started is not None and self._started.is_set():
                raise UserError(
                    "a process that read slides was ended from outside, most often for want of memory; run the same "
                    f"command again with fewer of them: {fewer}"
                ) from error
            raise UserError(
                "the processes that read slides ended before they could begin: a script that calls histoloom must do "
                'so under if __name__ == "__main__":, since each of them imports it (else memory is short: '
                f"{fewer})"
            ) from error

    def close(self) -> None:
        """Drop the jobs that have not begun, and release the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _start_process(started: Event) -> None:
    """Signal the start, and end this process when its parent is killed: else it would wait for jobs forever.

    Ctrl-C, which a terminal sends to all processes, is the parent's to handle: it closes the pool.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started.set()
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
