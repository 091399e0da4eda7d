"""Jobs on slides, spread over processes, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from histoloom.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """Up to ``count`` processes that read slides; used with ``with``, and started when there is first work for two.

    They are fresh processes (spawned, since OpenSlide and torch do not survive a fork), so what they run must be
    importable. ``count`` None means one a core; one works in this process.
    """

    def __init__(self, count: int | None) -> None:
        self._count = count or os.cpu_count() or 1
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, function: Callable[[Job], Result], *, jobs: Sequence[Job], label: str) -> list[Result]:
        """``function`` of every job, in the jobs' order; what it raises is raised here."""
        with _progress() as progress:
            task = progress.add_task(label, total=len(jobs))
            results = self._results(function, jobs=jobs)
            done: dict[int, Result] = {}
            for index, result in results:
                done[index] = result
                progress.advance(task)
        return [done[index] for index in range(len(jobs))]

    def _results(self, function: Callable[[Job], Result], *, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Number and result of each job, as they come."""
        if min(self._count, len(jobs)) <= 1:
            yield from ((index, function(job)) for index, job in enumerate(jobs))
            return
        try:
            numbers = {self._pool(len(jobs)).submit(function, job): index for index, job in enumerate(jobs)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that read slides was ended from outside, most often for want of memory; run the same "
                f"command again with fewer of them: --set runtime.workers={max(1, self._count // 2)}"
            ) from error

    def _pool(self, jobs: int) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            count = min(self._count, jobs)
            self._executor = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
        return self._executor


def _end_with_parent() -> None:
    """End this process when its parent is killed: a pool's worker would else wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"
    threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _progress() -> Progress:
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
