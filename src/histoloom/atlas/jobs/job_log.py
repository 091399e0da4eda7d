"""One drawing job on disk: ``RUN/drawn/JOB_ID.jsonl``, a line an event, and the labelled folder ``RUN/drawn/JOB_ID``.

Lines are only ever appended, and each stands for something that has happened: a picture's line is written after the
picture. A job whose last line says neither done nor anything else final, and that nobody draws, was interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from histoloom.diffusion.generation.request import Request

logger = logging.getLogger(__name__)

State = Literal["waiting", "drawing", "done", "cancelled", "failed", "interrupted"]
ENDED: frozenset[State] = frozenset({"done", "cancelled", "failed", "interrupted"})
SUFFIX = ".jsonl"
WITHHELD = "withheld"
"""as ``diffusion.sample_folder`` calls it"""


@dataclass(frozen=True)
class Made:
    """A picture of a job: its number there, its ``row`` of the table, and whether it was withheld."""

    number: int
    row: Mapping[str, Any]
    withheld: bool

    @property
    def place(self) -> str:
        """Where it lies, relative to the job's folder."""
        file = str(self.row["file_name"])
        return f"{WITHHELD}/{file}" if self.withheld else file


@dataclass(frozen=True)
class Ask:
    """What a job is to draw. ``total``: pictures in all; ``title``: in words; ``time``: when, ISO 8601 in UTC."""

    request: Request
    total: int
    title: str
    time: str


@dataclass
class JobLog:
    """A job as its file says it is; changes are written first, then seen."""

    job_id: str
    home: Path
    ask: Ask
    state: State = "waiting"
    message: str = ""
    made: list[Made] = field(default_factory=list)
    deleted: bool = False

    @property
    def folder(self) -> Path:
        """The labelled folder."""
        return self.home / self.job_id

    @property
    def file(self) -> Path:
        """The file of events."""
        return self.home / f"{self.job_id}{SUFFIX}"

    @property
    def shown(self) -> list[Made]:
        """The pictures that were not withheld."""
        return [made for made in self.made if not made.withheld]

    @staticmethod
    def create(home: Path, *, job_id: str, ask: Ask) -> JobLog:
        """A new job, waiting."""
        home.mkdir(parents=True, exist_ok=True)
        job = JobLog(job_id, home, ask)
        _append(job.file, {"ask": asdict(ask)})
        return job

    @staticmethod
    def read(file: Path) -> JobLog | None:
        """The job in ``file``; None where its first line did not come to the disk, or another version wrote it."""
        events = list(_events(file))
        if not events or "ask" not in events[0]:
            return None
        try:
            job = JobLog(file.stem, file.parent, _ask(events[0]["ask"]))
        except (KeyError, TypeError, ValueError):
            logger.warning("%s was written by another version of Histoloom and is left out", file)
            return None
        for event in events[1:]:
            job._see(event)
        return job

    def now(self, state: State, *, message: str = "") -> None:
        """Change the state."""
        self._add({"state": state, "message": message})

    def add(self, row: Mapping[str, object], *, withheld: bool) -> None:
        """A picture has come to the disk."""
        self._add({"picture": dict(row), "withheld": withheld})

    def write_tables(self) -> None:
        """The tables of the pictures that are there, where a job ended before it could write its own.

        A picture that came to the disk but not into the file of events is taken away; it will be drawn again.
        """
        from histoloom.diffusion.generation.sample_folder import write_table  # loads torch

        if not self.folder.is_dir():
            return
        known = {self.folder / made.place for made in self.made}
        for stray in (*self.folder.rglob(".*.part"), *(set(self.folder.rglob("*.png")) - known)):
            stray.unlink(missing_ok=True)
        with_init = bool(self.ask.request.init_images)
        for withheld, path in ((False, self.folder), (True, self.folder / WITHHELD)):
            rows = [made.row for made in self.made if made.withheld == withheld]
            if rows or not withheld:
                write_table(path / "metadata.csv", rows=rows, with_init=with_init)

    def delete(self) -> None:
        """Take the job and its pictures off the disk; one that was cut short goes on when jobs are read again."""
        self._add({"deleted": True})
        shutil.rmtree(self.folder, ignore_errors=True)
        self.file.unlink(missing_ok=True)

    def bytes(self) -> int:
        """What its pictures take on disk."""
        return sum(file.stat().st_size for file in self.folder.rglob("*.png")) if self.folder.is_dir() else 0

    def _add(self, event: dict[str, Any]) -> None:
        _append(self.file, event)
        self._see(event)

    def _see(self, event: Mapping[str, Any]) -> None:
        if "picture" in event:
            self._see_picture(event["picture"], withheld=bool(event["withheld"]))
        elif "deleted" in event:
            self.deleted = True
        elif "state" in event:
            self.state, self.message = event["state"], event.get("message", "")

    def _see_picture(self, row: Mapping[str, Any], *, withheld: bool) -> None:
        """One drawn again after a deleted file keeps its number."""
        for place, made in enumerate(self.made):
            if made.row["file_name"] == row["file_name"]:
                self.made[place] = replace(made, row=row, withheld=withheld)
                return
        self.made.append(Made(len(self.made), row, withheld))


def _ask(value: Mapping[str, Any]) -> Ask:
    said = dict(value["request"])
    for name in ("spacing", "guidance_interval"):  # settings that were removed since
        said.pop(name, None)
    for name in ("tissues", "between"):
        said[name] = None if said[name] is None else tuple(said[name])
    return Ask(Request(**said), int(value["total"]), str(value["title"]), str(value["time"]))


def _append(path: Path, event: Mapping[str, Any]) -> None:
    """One line by one ``write``, on the disk when this returns."""
    line = json.dumps(event, ensure_ascii=False) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + line).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; one torn by a crash is left out."""
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
