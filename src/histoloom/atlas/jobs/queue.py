"""The queue of drawing jobs: one is drawn at a time, in the order of submission, and written to disk as it is drawn.

A job draws pictures, or paints a field. A preview waits for none of them: it is painted between two steps of a job. One
worker thread owns the generator. A picture is in ``RUN/drawn`` before the page shows it, so that a page that is
opened again, or a computer that was switched off, loses nothing but the batch that was being drawn. This module loads
quickly; ``sample_runner`` loads torch when it is first needed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from histoloom.atlas.jobs.job_log import (
    ENDED,
    FIELD_FOLDER,
    FIELD_README,
    LAYOUT_FILE,
    SUFFIX,
    FieldSpec,
    JobLog,
    JobPicture,
    JobSpec,
    State,
)
from histoloom.diffusion.generation.request import Request
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, write_text

if TYPE_CHECKING:
    from histoloom.atlas.jobs.field_job import Preview, PreviewRequest
    from histoloom.atlas.jobs.sample_runner import JobPlan, SampleRunner
    from histoloom.diffusion.generation.sample_folder import WrittenSample
    from histoloom.diffusion.painting.job import OnProgress

T = TypeVar("T")
FOLDER = "drawn"
SHARE_STEP = 0.02
"""of a field, after which its share is written down: what a killed program leaves says how far it was"""
NICE = 5
"""The niceness of the worker thread: the page goes first."""
STUDENT = "student"
"""as in ``diffusion.generation.generator``, which loads torch"""
INTERRUPTED = "Histoloom was stopped while this job waited or was drawn; what was drawn is kept"


@dataclass(frozen=True)
class Limits:
    """``pictures`` of one job, jobs ``waiting``, and the size on disk of all pictures and of all fields, in bytes."""

    pictures: int = 500
    waiting: int = 20
    disk_bytes: int = 4 * 2**30
    field_bytes: int = 24 * 2**30


@dataclass(frozen=True)
class JobStatus:
    """The status of a job: ``made`` pictures of ``total``, others ``withheld``; ``share`` done, 0..1.

    ``seconds_left`` is None while it is unknown; ``ahead`` counts the jobs that are drawn before.
    """

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
    field: FieldSpec | None = None


class Stopped(Exception):
    """Raised between two steps of a drawing, to end it."""


class Superseded(UserError):
    """Another preview, say, took the place of this one."""


@dataclass
class _Progress:
    """A job of this program: its future, the progress of its batch, and the state that it is to stop with.

    ``already_drawn`` are the pictures that were there before; ``batch`` is how many pictures' worth of the current
    batch is done. Of a field they are shares of it.
    """

    future: Future[None] | None = None
    started: float = 0.0
    already_drawn: float = 0.0
    batch: float = 0.0
    stop: State | None = None


def has_generator(run: Path) -> bool:
    """Whether the run has a trained generator."""
    return all((run / "diffusion" / name).is_file() for name in ("artifact.json", "generator.json"))


def has_student(run: Path) -> bool:
    """Whether a student was distilled from the run's generator."""
    return (run / STUDENT / "student.json").is_file()


class JobQueue:
    """The jobs of one run, or of an exported generator, whose pictures are kept in ``folder``.

    Everything but ``close`` may be called from any thread.
    """

    def __init__(
        self,
        run: Path,
        *,
        folder: Path | None = None,
        limits: Limits | None = None,
        sample_runner: SampleRunner | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._run, self._home = run, folder or run / FOLDER
        self._loaded_runner, self._loading = sample_runner, threading.Lock()
        self._lock = threading.RLock()
        self._progress: dict[str, _Progress] = {}
        self._jobs: dict[str, JobLog] = {}
        self._urgent: dict[str, tuple[Callable[[], None], Future[Any]]] = {}  # what waits, by its kind
        self._closed = False
        self._owner = FileLock(self._home / ".lock", thread_local=False)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="drawing", initializer=_lower_priority)

        # Jobs on disk. Those that were not finished are marked, unless another program draws them.
        for file in sorted(self._home.glob(f"*{SUFFIX}")) if self._home.is_dir() else []:
            job = JobLog.read(file)
            if job is not None:
                self._jobs[job.job_id] = job
        unfinished = [job for job in self._jobs.values() if job.state not in ENDED or job.deleted]
        if unfinished:
            with suppress(UserError):
                self._become_owner()
                for job in unfinished:
                    if job.deleted:
                        job.delete()
                        del self._jobs[job.job_id]
                    else:
                        self._end(job.job_id, state="interrupted")

    @property
    def _runner(self) -> SampleRunner:
        """The sample runner, with torch loaded when it is first needed."""
        with self._loading:
            if self._loaded_runner is None:
                from histoloom.atlas.jobs.sample_runner import SampleRunner

                self._loaded_runner = SampleRunner(self._run, drawn=self._home)
            return self._loaded_runner

    def preload(self) -> None:
        """Load the sample runner in the background: a user is about to submit a job."""
        if self._loaded_runner is None:
            threading.Thread(target=lambda: self._runner, name="preloading", daemon=True).start()

    def submit(self, request: Request) -> str:
        """Queue a request; returns the job's id. ``UserError`` where it cannot be drawn, or a limit is reached."""
        self._become_owner()
        plan = self._runner.plan(request)
        return self._add(JobSpec(request, plan.total, plan.title, _now()), max_bytes=plan.max_bytes)

    def plan_field(self, request: Request, field: FieldSpec) -> JobPlan:
        """How a field would be painted, of the tissues of ``request``. ``UserError`` where it cannot be."""
        return self._runner.plan_field(request, field)

    def submit_field(self, request: Request, *, field: FieldSpec, layout: str) -> str:
        """Queue a field; ``layout``: GeoJSON in px of the field. As ``submit``."""
        self._become_owner()
        plan = self.plan_field(request, field)
        return self._add(
            JobSpec(request, plan.total, plan.title, _now(), field), max_bytes=plan.max_bytes, layout=layout
        )

    def _add(self, spec: JobSpec, *, max_bytes: int, layout: str = "") -> str:
        with self._lock:
            self._check_limits(spec, max_bytes=max_bytes)
            now = datetime.now(UTC)
            job_id = f"{now:%Y%m%d-%H%M%S}-{now.microsecond:06d}-{secrets.token_hex(2)}"
            with disk_errors_explained(self._home):
                if spec.field is not None:  # before the job: there is none without its layout
                    folder = (self._home / job_id).resolve()
                    folder.mkdir(parents=True)
                    write_text(folder / LAYOUT_FILE, layout)
                    write_text(folder / "README.txt", FIELD_README.format(command=self._command(spec, folder=folder)))
                self._jobs[job_id] = JobLog.create(self._home, job_id=job_id, spec=spec)
            self._start(job_id)
        return job_id

    def preview(self, request: PreviewRequest) -> Preview:
        """Paint a small field at once (``urgently``)."""
        return self.urgently("preview", lambda runner, check: runner.preview(request, on_progress=check))

    def urgently(self, kind: str, work: Callable[[SampleRunner, OnProgress], T]) -> T:
        """Do what takes seconds, between two steps of the job that is drawn, and wait for it.

        ``work`` is given the runner and what it is to call before each batch. ``UserError`` where it raises that, and
        ``Superseded`` where something else of this ``kind`` was asked for meanwhile.
        """
        future: Future[T] = Future()

        def run() -> None:
            def check(_done: float, _total: float) -> None:
                if kind in self._urgent or self._closed:
                    raise Superseded(f"another {kind} was asked for")

            try:
                future.set_result(work(self._runner, check))
            except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
                future.set_exception(error)

        with self._lock:
            if self._closed:
                raise UserError("the atlas is being closed")
            if kind in self._urgent:
                self._urgent[kind][1].set_exception(Superseded(f"another {kind} was asked for"))
            self._urgent[kind] = run, future
            self._worker.submit(self._do_urgent)
        return future.result()

    def _do_urgent(self) -> float:
        """Do all that is urgent, in the worker thread; returns the seconds that it took."""
        started = time.monotonic()
        while True:
            with self._lock:
                if not self._urgent:
                    return time.monotonic() - started
                run, _ = self._urgent.pop(next(iter(self._urgent)))
            run()

    def resume(self, job_id: str) -> None:
        """Draw what is missing of a job that ended early. ``UserError`` for another one."""
        self._become_owner()
        with self._lock:
            job = self._jobs[job_id]
            if job.state not in ENDED or job.state == "done":
                raise UserError(f"this job is {job.state}; only one that ended early can go on")
            self._check_limits(job.spec, max_bytes=0)
            job.set_state("waiting")
            self._start(job_id)

    def cancel(self, job_id: str) -> None:
        """End a job before its next step; what it has drawn stays. One that has ended meanwhile is left as it is."""
        self._become_owner()
        with self._lock:
            job, progress = self._jobs[job_id], self._progress.get(job_id)
            if progress is None or job.state in ENDED:
                return
            progress.stop = "cancelled"
            if progress.future is not None and progress.future.cancel():
                self._end(job_id, state="cancelled")

    def delete(self, job_id: str) -> None:
        """Delete a job and its pictures; ``UserError`` while it waits or is drawn."""
        self._become_owner()
        with self._lock:
            job = self._jobs[job_id]
            if job.state not in ENDED:
                raise UserError(f"this job is {job.state}; cancel it first")
            job.delete()
            del self._jobs[job_id]

    def jobs(self) -> list[JobStatus]:
        """All jobs, the newest first."""
        with self._lock:
            return [self.status(job_id) for job_id in sorted(self._jobs, reverse=True)]

    def status(self, job_id: str) -> JobStatus:
        """The status of a job; ``KeyError`` where there is no such job."""
        with self._lock:
            job, progress = self._jobs[job_id], self._progress.get(job_id) or _Progress()
            drawn, withheld = len(job.pictures) + progress.batch, sum(picture.withheld for picture in job.pictures)

            seconds_left = None
            drawn_now = drawn - progress.already_drawn
            if job.state == "drawing" and progress.started and drawn_now > 0:
                seconds_each = (time.monotonic() - progress.started) / drawn_now
                seconds_left = seconds_each * (job.spec.total - drawn)

            ahead = 0
            if job.state == "waiting" and job_id in self._progress:
                before = list(self._progress)[: list(self._progress).index(job_id)]
                ahead = sum(other in self._jobs and self._jobs[other].state not in ENDED for other in before)
            return JobStatus(
                job_id=job_id,
                state=job.state,
                title=job.spec.title,
                message=job.message,
                time=job.spec.time,
                total=job.spec.total,
                made=len(job.pictures) - withheld,
                withheld=withheld,
                share=1.0 if job.state == "done" else min(1.0, drawn / job.spec.total) if drawn else job.share,
                seconds_left=seconds_left,
                ahead=ahead,
                request=job.spec.request,
                field=job.spec.field,
            )

    def pictures(self, job_id: str) -> list[JobPicture]:
        """The pictures of a job that were not withheld, in the order of drawing; ``KeyError`` for no such job."""
        with self._lock:
            return self._jobs[job_id].visible

    def file(self, job_id: str, number: int) -> Path:
        """The file of a picture; ``KeyError`` where there is none of this number, or it was withheld."""
        with self._lock:
            job = self._jobs[job_id]
            picture = next((picture for picture in job.visible if picture.number == number), None)
            if picture is None:
                raise KeyError(number)
            return job.folder / picture.path

    def folder(self, job_id: str) -> Path:
        """The folder of a job; ``KeyError`` where there is no such job."""
        with self._lock:
            return self._jobs[job_id].folder

    def command(self, job_id: str) -> str:
        """The command that paints the field of a job, or continues it; ``KeyError`` where there is no such job."""
        with self._lock:
            spec = self._jobs[job_id].spec
        return self._command(spec, folder=(self._home / job_id).resolve())

    def _command(self, spec: JobSpec, *, folder: Path) -> str:
        assert spec.field is not None, "of fields"
        layout, out = folder / LAYOUT_FILE, folder / FIELD_FOLDER
        return spec.field.command(self._run.resolve(), spec.request, layout=layout, out=out)

    def close(self) -> None:
        """End what is being drawn, and the worker thread; jobs that were not done are marked as interrupted."""
        with self._lock:
            self._closed = True
            for _, future in self._urgent.values():
                future.set_exception(Superseded("the atlas is being closed"))
            self._urgent.clear()
            for progress in self._progress.values():
                progress.stop = progress.stop or "interrupted"
        self._worker.shutdown(cancel_futures=True)
        with self._lock:
            for job_id, job in self._jobs.items():
                if job_id in self._progress and job.state not in ENDED:
                    self._end(job_id, state="interrupted")
        self._owner.release()

    def _become_owner(self) -> None:
        """Become the one program that draws for this run; ``UserError`` where another one is."""
        with self._lock, disk_errors_explained(self._home):
            self._home.mkdir(parents=True, exist_ok=True)
            try:
                if not self._owner.is_locked:
                    self._owner.acquire(timeout=0)
            except Timeout:
                raise UserError("another window of Histoloom draws for this run; use that one, or close it") from None

    def _check_limits(self, spec: JobSpec, *, max_bytes: int) -> None:
        if spec.total > self.limits.pictures:
            raise UserError(
                f"a job draws at most {self.limits.pictures:,} pictures here, not {spec.total:,}; request fewer"
            )
        waiting = sum(job.state == "waiting" for job in self._jobs.values())
        if waiting >= self.limits.waiting:
            raise UserError(f"{waiting} jobs wait already; cancel one, or wait until one is done")
        is_field = spec.field is not None
        most = self.limits.field_bytes if is_field else self.limits.disk_bytes
        on_disk = sum(job.bytes() for job in self._jobs.values() if (job.spec.field is not None) == is_field)
        if on_disk + max_bytes > most and is_field:
            raise UserError(
                f"this field needs up to {max_bytes / 2**20:,.0f} MB while it is painted, and the fields here take "
                f"{on_disk / 2**20:,.0f} MB of at most {most / 2**20:,.0f} MB; make it smaller, or delete fields"
            )
        if on_disk + max_bytes > most:
            raise UserError(
                f"the pictures drawn here take {on_disk / 2**20:,.0f} MB of at most {most / 2**20:,.0f} MB; "
                "delete a job that you have downloaded"
            )
        if is_field and max_bytes > (free := shutil.disk_usage(self._home).free):
            raise UserError(
                f"this field needs up to {max_bytes / 2**20:,.0f} MB while it is painted, and the disk has "
                f"{free / 2**20:,.0f} MB left; make it smaller, or free some space"
            )

    def _start(self, job_id: str) -> None:
        self._progress.pop(job_id, None)  # a job that is resumed is the last in the order
        progress = self._progress[job_id] = _Progress()
        progress.future = self._worker.submit(self._draw, job_id)
        progress.future.add_done_callback(lambda future: self._note_failure(job_id, future))

    def _draw(self, job_id: str) -> None:
        """Draw a job, in the worker thread. An error that nobody foresaw is recorded by ``_note_failure``."""
        from histoloom.diffusion.generation.sample_folder import JobCallbacks

        with self._lock:
            job, progress = self._jobs[job_id], self._progress[job_id]
            job.set_state("drawing")

        def check(already_drawn: float) -> None:
            """Before a step: end the job where it is to stop, and do what is urgent."""
            paused = self._do_urgent()
            if progress.stop is not None:
                raise Stopped
            if progress.started == 0:
                progress.started, progress.already_drawn = time.monotonic(), already_drawn
            else:
                progress.started += paused

        def on_step(done: int, total: int) -> None:
            check(len(job.pictures))
            with self._lock:
                batch = min(self._runner.batch, job.spec.total - len(job.pictures))
                progress.batch = batch * done / total

        def on_written(new: WrittenSample) -> None:
            with self._lock:
                job.add_picture(new.row, withheld=new.withheld)
                progress.batch = max(0.0, progress.batch - 1)

        def on_progress(done: float, total: float) -> None:
            check(done / total)
            progress.batch = done / total
            if progress.batch > job.share + SHARE_STEP:
                job.set_share(progress.batch)

        request, field = job.spec.request, job.spec.field
        try:
            if field is None:
                callbacks = JobCallbacks(on_step=on_step, on_written=on_written)
                self._runner.draw(request, out=job.folder, callbacks=callbacks)
            else:
                self._runner.paint(request, field=field, folder=job.folder, on_progress=on_progress)
        except Stopped:
            self._end(job_id, state=progress.stop or "cancelled")
        except UserError as error:
            self._end(job_id, state="failed", message=str(error))
        else:
            with self._lock:
                job.set_state("done")

    def _note_failure(self, job_id: str, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._end(job_id, state="failed", message=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _end(self, job_id: str, *, state: State, message: str = "") -> None:
        with self._lock:
            job, progress = self._jobs[job_id], self._progress.get(job_id)
            job.write_tables()
            share = progress.batch if progress is not None and job.spec.field is not None else None
            job.set_state(state, message=INTERRUPTED if state == "interrupted" else message, share=share)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lower_priority() -> None:
    """Let the page's threads go first: on Linux each thread has a niceness of its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
