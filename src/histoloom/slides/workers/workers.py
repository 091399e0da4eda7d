"""Jobs on slides, spread over processes of this machine or over a cluster, with a progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from histoloom.errors import UserError
from histoloom.slides.workers.dask_cluster import Cluster, forget_cluster
from histoloom.slides.workers.pool import Pool

Job = TypeVar("Job")
Result = TypeVar("Result")


class Backend(Protocol):
    """Where jobs run."""

    def results(self, function: Callable[[Job], Result], *, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Number and result of each job, as they come; what ``function`` raises is raised here."""
        ...

    def close(self) -> None:
        """Let go of the processes."""
        ...


class Workers:
    """Processes that read slides; used with ``with``.

    Without a ``scheduler`` they are up to ``count`` of this machine (None: one a core; one works in this process);
    with one, such as ``tcp://host:8786``, those of its Dask cluster. ``place`` is the folder, absolute, under which
    the jobs write. What they run must be importable. Raises ``UserError`` where both are given.
    """

    def __init__(self, count: int | None, *, scheduler: str | None = None, place: Path | None = None) -> None:
        if scheduler is not None and count is not None:
            raise UserError(
                f"runtime.workers={count} counts processes of this machine, and runtime.scheduler sends the slides to "
                "others; choose: --set runtime.workers=null, or --set runtime.scheduler=null"
            )
        self._count, self._scheduler, self._place = count, scheduler, place
        self._backend: Backend | None = None

    def __enter__(self) -> Self:
        if self._place is not None:
            forget_cluster(self._place)
        if self._scheduler is None:
            self._backend = Pool(self._count)
        else:
            assert self._place is not None, "a cluster needs the folder in which it works"
            self._backend = Cluster(self._scheduler, place=self._place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._backend is not None, "entered before"
        self._backend.close()

    def run(self, function: Callable[[Job], Result], *, jobs: Sequence[Job], label: str) -> list[Result]:
        """``function`` of every job, in the jobs' order; what it raises is raised here."""
        assert self._backend is not None, "workers are used with 'with'"
        with _progress() as progress:
            task = progress.add_task(label, total=len(jobs))
            done: dict[int, Result] = {}
            for index, result in self._backend.results(function, jobs=jobs):
                done[index] = result
                progress.advance(task)
        return [done[index] for index in range(len(jobs))]


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
