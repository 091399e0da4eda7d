"""Jobs on slides, spread over processes, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from histoloom.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], *, jobs: Sequence[Job], workers: int | None, label: str
) -> list[Result]:
    """``function`` of every job, in the jobs' order.

    One worker, or one job, runs in this process; more run in fresh processes (spawned, since OpenSlide and torch do
    not survive a fork), so ``function`` must be importable. ``workers`` None means one a core. What ``function``
    raises is raised here, and the other jobs are given up.
    """
    count = min(workers or os.cpu_count() or 1, len(jobs))
    with _progress() as progress:
        task = progress.add_task(label, total=len(jobs))
        if count <= 1:
            return [_done(function(job), progress=progress, task=task) for job in jobs]
        return _in_processes(function, jobs=jobs, count=count, advance=lambda: progress.advance(task))


def _done(result: Result, *, progress: Progress, task: int) -> Result:
    progress.advance(task)  # type: ignore[arg-type]
    return result


def _in_processes(
    function: Callable[[Job], Result], *, jobs: Sequence[Job], count: int, advance: Callable[[], None]
) -> list[Result]:
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
    try:
        futures = [executor.submit(function, job) for job in jobs]
        for future in as_completed(futures):
            future.result()
            advance()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise UserError(
            "a process that read slides was ended from outside, most often for want of memory; run the same command "
            f"again with fewer of them: --set runtime.workers={max(1, count // 2)}"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


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
