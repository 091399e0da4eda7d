"""An output folder that belongs to one job: the same job continues it, any other is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_json


@contextmanager
def claimed(out: Path, *, identity: Mapping[str, object]) -> Iterator[None]:
    """Hold ``out`` for the job that ``identity`` tells from others, and remove what a crash left torn.

    Raises ``UserError`` where ``out`` holds something else, and while another process writes to it.
    """
    job_file = out / "job.json"
    if job_file.is_file():
        if read_json(job_file) != identity:
            raise UserError(f"{out} holds the images of another request; give another folder with --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder with --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(job_file, identity)

    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process writes to {out}; wait for it, or give another folder with --out") from None
    try:
        for torn in out.rglob(".*.part"):
            torn.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
