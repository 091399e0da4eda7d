"""Jobs that draw for the page: one at a time, in the order of asking, on disk as they go.

One worker thread owns the generator. What a job has drawn is in ``RUN/drawn`` before anyone is told of it, so that a
page that is opened again, or a computer that was switched off, loses nothing but the batch that was being drawn.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from histoloom.atlas.jobs.job_log import ENDED, SUFFIX, Ask, JobLog, Made, State
from histoloom.diffusion.generation.request import Request
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained

if TYPE_CHECKING:
    from histoloom.atlas.jobs.draw import SampleRunner
    from histoloom.diffusion.generation.sample_folder import JobCallbacks, WrittenSample

FOLDER = "drawn"
CALM = 5
"""how much less urgent than the page the worker thread is (nice)"""
INTERRUPTED = "Histoloom was stopped while this job waited or was drawn; what was drawn is kept"


@dataclass(frozen=True)
class Limits:
    """``pictures`` of one job, jobs ``waiting``, and what all pictures may take on disk, in bytes."""

    pictures: int = 500
    waiting: int = 20
    kept_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class Status:
    """How a job stands. ``share``: done, 0..1; ``seconds_left``: None while nobody can tell; ``ahead``: jobs before."""

    job_id: str
    state: State
    title: str
    message: str
    time: str
    total: int
    made: int
    withheld: int
    share: float
    seconds_left: float | None
    ahead: int
    request: Request


class Stopped(Exception):
    """Raised between two steps of a drawing, to end it."""


@dataclass
class _Going:
    """What is known of a job while the program runs: how far its batch is, and whether it is to stop."""

    future: Future[None] | None = None
    started: float = 0.0
    first: int = 0
    """pictures that were there before"""
    batch: float = 0.0
    stop: State | None = None


class JobQueue:
    """The jobs of one run. Everything but ``close`` may be called from any thread."""

    def __init__(self, run: Path, *, limits: Limits | None = None, artist: SampleRunner | None = None) -> None:
        self.limits = limits or Limits()
        self._run, self._home = run, run / FOLDER
        self._given, self._making = artist, threading.Lock()
        self._lock = threading.RLock()
        self._going: dict[str, _Going] = {}
        self._jobs: dict[str, JobLog] = {}
        self._owner = FileLock(self._home / ".lock", thread_local=False)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="drawing", initializer=_calm_down)
        self._read()

    @property
    def _artist(self) -> SampleRunner:
        """Who draws: torch is loaded when there is something to draw, or somebody is about to ask."""
        with self._making:
            if self._given is None:
                from histoloom.atlas.jobs.draw import SampleRunner

                self._given = SampleRunner(self._run)
            return self._given

    def warm(self) -> None:
        """Load what the first job needs to be looked over, in the background: somebody is about to ask for one."""
        if self._given is None:
            threading.Thread(target=lambda: self._artist, name="warming", daemon=True).start()

    def submit(self, request: Request) -> str:
        """Queue a request; returns the job's id. ``UserError`` where it cannot be drawn, or a limit is reached."""
        self._own()
        plan = self._artist.plan(request)
        with self._lock:
            self._check_limits(plan.total, most_bytes=plan.most_bytes)
            now = datetime.now(UTC)
            job_id = f"{now:%Y%m%d-%H%M%S}-{now.microsecond:06d}-{secrets.token_hex(2)}"
            ask = Ask(request, plan.total, plan.title, now.isoformat(timespec="seconds"))
            with disk_errors_explained(self._home):
                self._jobs[job_id] = JobLog.create(self._home, job_id=job_id, ask=ask)
            self._start(job_id)
        return job_id

    def resume(self, job_id: str) -> None:
        """Draw what is missing of a job that ended early. ``UserError`` for another one."""
        self._own()
        with self._lock:
            job = self._job(job_id)
            if job.state not in ENDED or job.state == "done":
                raise UserError(f"this job is {job.state}; only one that ended early can go on")
            self._check_limits(job.ask.total, most_bytes=0)
            job.now("waiting")
            self._start(job_id)

    def cancel(self, job_id: str) -> None:
        """End a job before its next step; what it has drawn stays. ``UserError`` where it has ended already."""
        self._own()
        with self._lock:
            job, going = self._job(job_id), self._going.get(job_id)
            if going is None or job.state in ENDED:
                raise UserError(f"this job is {job.state} and cannot be cancelled")
            going.stop = "cancelled"
            if going.future is not None and going.future.cancel():
                self._end(job_id, state="cancelled")

    def delete(self, job_id: str) -> None:
        """Take a job and its pictures off the disk; ``UserError`` while it waits or is drawn."""
        self._own()
        with self._lock:
            job = self._job(job_id)
            if job.state not in ENDED:
                raise UserError(f"this job is {job.state}; cancel it first")
            job.delete()
            del self._jobs[job_id]

    def jobs(self) -> list[Status]:
        """All jobs, the newest first."""
        with self._lock:
            return [self.status(job_id) for job_id in sorted(self._jobs, reverse=True)]

    def status(self, job_id: str) -> Status:
        """How a job stands; ``KeyError`` where there is no such job."""
        with self._lock:
            job, going = self._jobs[job_id], self._going.get(job_id) or _Going()
            share = 1.0 if job.state == "done" else min(1.0, (len(job.made) + going.batch) / job.ask.total)
            withheld = sum(made.withheld for made in job.made)
            return Status(
                job_id=job_id,
                state=job.state,
                title=job.ask.title,
                message=job.message,
                time=job.ask.time,
                total=job.ask.total,
                made=len(job.made) - withheld,
                withheld=withheld,
                share=share,
                seconds_left=_seconds_left(job, going),
                ahead=self._ahead(job_id) if job.state == "waiting" else 0,
                request=job.ask.request,
            )

    def pictures(self, job_id: str) -> list[Made]:
        """The pictures of a job that were not withheld, in the order of drawing; ``KeyError`` for no such job."""
        with self._lock:
            return self._jobs[job_id].shown

    def file(self, job_id: str, number: int) -> Path:
        """Where a picture lies; ``KeyError`` where there is none of this number, or it was withheld."""
        with self._lock:
            job = self._jobs[job_id]
            found = next((made for made in job.shown if made.number == number), None)
            if found is None:
                raise KeyError(number)
            return job.folder / found.place

    def folder(self, job_id: str) -> Path:
        """The labelled folder of a job; ``KeyError`` where there is no such job."""
        with self._lock:
            return self._jobs[job_id].folder

    def close(self) -> None:
        """End what is being drawn, and the worker thread; jobs that were not done are marked as interrupted."""
        with self._lock:
            for going in self._going.values():
                going.stop = going.stop or "interrupted"
        self._worker.shutdown(cancel_futures=True)
        with self._lock:
            for job_id, job in self._jobs.items():
                if job_id in self._going and job.state not in ENDED:
                    self._end(job_id, state="interrupted")
        self._owner.release()

    def _read(self) -> None:
        """What lies on disk. Jobs that somebody left unfinished are marked, unless another program draws them."""
        for file in sorted(self._home.glob(f"*{SUFFIX}")) if self._home.is_dir() else []:
            job = JobLog.read(file)
            if job is not None:
                self._jobs[job.job_id] = job
        unfinished = [job for job in self._jobs.values() if job.state not in ENDED or job.deleted]
        if unfinished:
            with suppress(UserError):
                self._own()
                for job in unfinished:
                    self._mend(job)

    def _mend(self, job: JobLog) -> None:
        if job.deleted:
            job.delete()
            del self._jobs[job.job_id]
            return
        job.write_tables()
        job.now("interrupted", message=INTERRUPTED)

    def _own(self) -> None:
        """Become the one program that draws for this run; ``UserError`` where another one is."""
        with self._lock, disk_errors_explained(self._home):
            self._home.mkdir(exist_ok=True)
            try:
                if not self._owner.is_locked:
                    self._owner.acquire(timeout=0)
            except Timeout:
                raise UserError("another window of Histoloom draws for this run; use that one, or close it") from None

    def _job(self, job_id: str) -> JobLog:
        return self._jobs[job_id]

    def _check_limits(self, pictures: int, *, most_bytes: int) -> None:
        if pictures > self.limits.pictures:
            raise UserError(
                f"a job draws at most {self.limits.pictures:,} pictures here, not {pictures:,}; ask for fewer"
            )
        waiting = sum(job.state == "waiting" for job in self._jobs.values())
        if waiting >= self.limits.waiting:
            raise UserError(f"{waiting} jobs wait already; cancel one, or wait until one is done")
        kept = sum(job.bytes() for job in self._jobs.values())
        if kept + most_bytes > self.limits.kept_bytes:
            raise UserError(
                f"the pictures drawn here take {kept / 2**20:,.0f} MB of at most "
                f"{self.limits.kept_bytes / 2**20:,.0f} MB; delete a job that you have downloaded"
            )

    def _start(self, job_id: str) -> None:
        self._going.pop(job_id, None)  # one that goes on stands last in the order
        going = self._going[job_id] = _Going()
        going.future = self._worker.submit(self._draw, job_id)
        going.future.add_done_callback(lambda future: self._note_failure(job_id, future))

    def _draw(self, job_id: str) -> None:
        with self._lock:
            job, going = self._jobs[job_id], self._going[job_id]
            job.now("drawing")
        with self._ending(job_id):
            self._artist.draw(job.ask.request, out=job.folder, callbacks=self._callbacks(job, going))

    @contextmanager
    def _ending(self, job_id: str) -> Iterator[None]:
        """Note how the drawing within ended; an error that nobody foresaw is noted by ``_note_failure``."""
        try:
            yield
        except Stopped:
            self._end(job_id, state=self._going[job_id].stop or "cancelled")
        except UserError as error:
            self._end(job_id, state="failed", message=str(error))
        else:
            with self._lock:
                self._jobs[job_id].now("done")

    def _note_failure(self, job_id: str, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._end(job_id, state="failed", message=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _end(self, job_id: str, *, state: State, message: str = "") -> None:
        with self._lock:
            job = self._jobs[job_id]
            job.write_tables()
            job.now(state, message=INTERRUPTED if state == "interrupted" else message)

    def _callbacks(self, job: JobLog, going: _Going) -> JobCallbacks:
        from histoloom.diffusion.generation.sample_folder import JobCallbacks

        def on_step(done: int, total: int) -> None:
            with self._lock:
                if going.stop is not None:
                    raise Stopped
                if going.started == 0:
                    going.started, going.first = time.monotonic(), len(job.made)
                batch = min(self._artist.batch, job.ask.total - len(job.made))
                going.batch = batch * done / total

        def on_written(new: WrittenSample) -> None:
            with self._lock:
                job.add(new.row, withheld=new.withheld)
                going.batch = max(0.0, going.batch - 1)

        return JobCallbacks(on_step=on_step, on_written=on_written)

    def _ahead(self, job_id: str) -> int:
        before = list(self._going)[: list(self._going).index(job_id)] if job_id in self._going else []
        return sum(other in self._jobs and self._jobs[other].state not in ENDED for other in before)


def _seconds_left(job: JobLog, going: _Going) -> float | None:
    """By the speed so far, which the first step begins to tell."""
    if job.state != "drawing" or going.started == 0:
        return None
    drawn = len(job.made) - going.first + going.batch
    if drawn <= 0:
        return None
    return (time.monotonic() - going.started) / drawn * (job.ask.total - going.first - drawn)


def _calm_down() -> None:
    """Let the page go first: on Linux each thread has an urgency of its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), CALM)
