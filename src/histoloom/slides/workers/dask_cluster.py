"""Jobs on slides, on the workers of a Dask cluster.

The workers read the slides and write the run's folder themselves, so both lie on a file system that all machines
share, under the same paths. A job whose worker dies goes to another one. Before each job a worker makes sure that it
would write what the local pool writes: it has the same code and libraries, it can read the slide, and the run still
waits for it.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from histoloom.errors import UserError
from histoloom.run.directory import fingerprint, write_text
from histoloom.slides.entries import SlideEntry

logger = logging.getLogger("histoloom")

Job = TypeVar("Job")
Result = TypeVar("Result")

CONNECT_SECONDS = 5.0
WORKERS_SECONDS = 60.0  # without a single worker, before the run stops
POLL_SECONDS = 2.0
BATCH = 16  # jobs sent in one message
TOKEN_FILE = ".cluster"
# Packages that decide which bytes a job writes.
PACKAGES = (
    "histoloom",
    "imagecodecs",
    "numpy",
    "openslide-bin",
    "openslide-python",
    "pillow",
    "scikit-image",
    "scipy",
    "tifffile",
)
_LOCALLY = "read slides on this machine instead: --set runtime.scheduler=null"
_SHARED = "every worker needs the run's folder and the slides under the same paths, on a file system that all share"

_one_slide_at_a_time = threading.Lock()


@runtime_checkable
class SlideJob(Protocol):
    """A job on a slide."""

    @property
    def entry(self) -> SlideEntry:
        """The slide."""
        ...


@dataclass(frozen=True)
class Requirements:
    """What a worker must share with the run before it may touch its folder ``place``.

    ``token`` is the text of ``place/.cluster``: a worker that finds another one, or none, works for a run that is over.
    """

    versions: Mapping[str, str]
    place: Path
    token: str

    def problem(self, slides: Sequence[Path]) -> str | None:
        """Why this process cannot work on ``slides``, in one line; None where it can."""
        worker = f"the Dask worker on {socket.gethostname()}"
        installed = versions()
        for name, wanted in self.versions.items():
            if installed[name] != wanted:
                return (
                    f"{worker} has {name} {installed[name]}, this process {wanted}: other pixels may come out; "
                    "install the same there (pip install -c constraints.txt '.[cluster]') and start it again"
                )
        try:
            token = (self.place / TOKEN_FILE).read_text(encoding="utf-8")
        except OSError:
            token = ""
        if token != self.token:
            return f"{worker} does not see this run in {self.place}: {_SHARED}"
        if not os.access(self.place, os.W_OK):
            return f"{worker} may not write {self.place}: start it as a user who may"
        unreadable = [slide for slide in slides if not os.access(slide, os.R_OK)]
        return f"{worker} cannot read {unreadable[0]}: {_SHARED}" if unreadable else None


class DaskCluster:
    """The workers of the Dask scheduler at ``address``, for jobs that write under ``place``.

    Raises ``UserError`` where the scheduler does not answer, has no workers, or has workers that cannot do the jobs.
    """

    def __init__(self, address: str, *, place: Path) -> None:
        assert place.is_absolute(), "workers have other working directories"
        self._address = address
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError("runtime.scheduler needs the extra: pip install 'histoloom[cluster]'") from error
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="histoloom")
        except OSError as error:
            raise UserError(
                f"no Dask scheduler answers at {address}; start one (dask scheduler) on that machine, or {_LOCALLY}"
            ) from error
        try:
            self._client.run_on_scheduler(versions)
        except (ImportError, AttributeError) as error:
            self._client.close()
            raise UserError(_no_histoloom(f"scheduler at {address}", error=error)) from error
        self._requirements = Requirements(versions(), place, uuid.uuid4().hex)
        write_text(place / TOKEN_FILE, self._requirements.token)
        self._announced = False

    def results(self, function: Callable[[Job], Result], *, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Number and result of each job, as they come; what ``function`` raises is raised here."""
        if not jobs:
            return
        self._check_workers(jobs)
        pickled = [pickle.dumps((function, job)) for job in jobs]
        futures = self._client.map(run_job, pickled, requirements=self._requirements, pure=False, batch_size=BATCH)
        numbers = {future.key: index for index, future in enumerate(futures)}
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(arrived.put)
        for _ in jobs:
            future = self._next(arrived)
            index = numbers[future.key]
            yield index, self._result(future, job=jobs[index])

    def close(self) -> None:
        """Leave the cluster; jobs that have not begun are dropped there."""
        remove_token(self._requirements.place)
        self._client.close(timeout=CONNECT_SECONDS)

    def _check_workers(self, jobs: Sequence[object]) -> None:
        """Ask each present worker whether it can do the jobs, so that a problem shows before the work."""
        if not self._client.nthreads():
            logger.info("waiting for workers of %s", self._address)
            try:
                self._client.wait_for_workers(1, timeout=WORKERS_SECONDS)
            except TimeoutError as error:
                raise UserError(self._no_workers()) from error
        slides = [job.entry.file for job in jobs if isinstance(job, SlideJob)]
        answers = self._client.run(self._requirements.problem, slides, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, str):
                raise UserError(answer)
            if isinstance(answer, Exception) and not isinstance(answer, OSError):  # that one has just left
                raise UserError(_no_histoloom(f"worker at {address}", error=answer))

        if not self._announced:
            self._announced = True
            threads = self._client.nthreads()
            logger.info("slides are read by %s (workers: %d)", self._address, len(threads))
            most = max(threads.values(), default=1)
            if most > 1:
                logger.info(
                    "some have %d threads, but each reads one slide at a time: dask worker %s --nworkers %d "
                    "--nthreads 1",
                    most,
                    self._address,
                    most,
                )

    def _next(self, arrived: queue.SimpleQueue[Any]) -> Any:
        """The next future that is done; raises ``UserError`` where no worker has been there for too long."""
        last_seen = time.monotonic()
        while True:
            try:
                return arrived.get(timeout=POLL_SECONDS)
            except queue.Empty:
                pass
            if self._client.status != "running":
                raise UserError(self._no_scheduler())
            if self._client.nthreads():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > WORKERS_SECONDS:
                raise UserError(self._no_workers())

    def _result(self, future: Any, *, job: object) -> Any:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            name = job.entry.file.name if isinstance(job, SlideJob) else repr(job)[:80]
            raise UserError(
                f"{error.allowed_failures + 1} workers ended while they had {name}, the last at "
                f"{error.last_worker.address}, most often for want of memory (their logs say): give each more (dask "
                "worker --memory-limit, or fewer on a machine), or take the slide out, and run the same command "
                "again; finished slides are kept"
            ) from error
        except CancelledError as error:
            raise UserError(self._no_scheduler()) from error

    def _no_scheduler(self) -> str:
        return (
            f"the Dask scheduler at {self._address} went away; start it and its workers and run the same command "
            f"again (finished slides are kept), or {_LOCALLY}"
        )

    def _no_workers(self) -> str:
        return (
            f"the Dask scheduler at {self._address} has no workers; start some (dask worker {self._address} "
            f"--nworkers N --nthreads 1) and run the same command again, or {_LOCALLY}"
        )


def remove_token(place: Path) -> None:
    """Remove the file that tells workers that a run waits for them in ``place``."""
    (place / TOKEN_FILE).unlink(missing_ok=True)


def run_job(pickled: bytes, *, requirements: Requirements) -> Any:
    """On a worker: do a pickled (function, job), if this process meets ``requirements``; else raises ``UserError``.

    One at a time in a process, as in the local pool, whatever the worker's number of threads.
    """
    with _one_slide_at_a_time:
        # Before unpickling, since another version of the code may not be able to.
        problem = requirements.problem(())
        if problem is None:
            function, job = pickle.loads(pickled)
            problem = requirements.problem([job.entry.file] if isinstance(job, SlideJob) else ())
        if problem is not None:
            raise UserError(problem)
        return function(job)


@lru_cache
def versions() -> Mapping[str, str]:
    """Versions of ``PACKAGES`` in this process, "none" where one is missing, and a digest of the code on slides."""
    installed: dict[str, str] = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "none"
    folder = Path(__file__).parent.parent
    files = {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))
    }
    return installed | {"histoloom.slides": fingerprint(files)}


def _no_histoloom(who: str, *, error: Exception) -> str:
    return (
        f"the Dask {who} cannot run this histoloom ({error}); start it from an environment with the same version "
        "(pip install -c constraints.txt '.[cluster]')"
    )
