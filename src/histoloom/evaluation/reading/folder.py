"""A reading's folder ``RUN/readings/ID``: its plan, its pictures, its readers and their answers.

Plan and pictures appear by one rename and never change; readers and answers are lines that are only ever appended,
each flushed to the disk before it counts. The first answer of a reader to a picture stays.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from histoloom.errors import UserError
from histoloom.evaluation.reading.plan import Plan
from histoloom.run.directory import disk_errors_explained, read_json, write_bytes, write_json
from histoloom.run.json_lines import append_lines, read_lines

logger = logging.getLogger("histoloom")

FOLDER = "readings"
MOST_READERS = 200
LONGEST_NAME = 80
_WAIT_SECONDS = 30.0

Record = TypeVar("Record")


@dataclass(frozen=True)
class Entry:
    """One line of ``readers.jsonl``: a reader, and when they started."""

    time: str
    rater: str


@dataclass(frozen=True)
class Answer:
    """One line of ``answers.jsonl``.

    ``trial``: the picture's place in the plan; ``position``: its place on this reader's screen, from 0; ``answer``: a
    place in the plan's choices. ``seconds`` from the picture's appearing to the answer, as the reader's computer
    measured it, without pauses; never more than ``at_most``, what passed since the picture was handed out (None:
    not known). ``scaling``: how the picture was enlarged.
    """

    time: str
    rater: str
    trial: int
    position: int
    answer: int
    seconds: float
    at_most: float | None
    scaling: str


class Reading:
    """A reading on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        """The folder's name, such as ``003-naming``."""
        return self.folder.name

    @property
    def number(self) -> int:
        """The number at the start of the id."""
        return int(self.id.partition("-")[0])

    @cached_property
    def plan(self) -> Plan:
        """The design of the reading."""
        return Plan.of_json(read_json(self.folder / "plan.json"))

    @cached_property
    def key(self) -> bytes:
        """The secret that pictures' addresses are made with."""
        return bytes.fromhex((self.folder / "key").read_text(encoding="ascii").strip())

    def picture(self, trial: int) -> np.ndarray:
        """What is shown, uint8 (H, W, 3)."""
        return np.array(np.load(self.folder / "pictures.npy", mmap_mode="r")[trial])

    def readers(self) -> list[str]:
        """The names of all readers, the first to start first."""
        return list(dict.fromkeys(entry.rater for entry in _records(self.folder / "readers.jsonl", kind=Entry)))

    def answers(self) -> dict[str, dict[int, Answer]]:
        """Each reader's answers by trial, the earliest first; of two answers to one picture the first counts."""
        by_reader: dict[str, dict[int, Answer]] = {reader: {} for reader in self.readers()}
        for answer in _records(self.folder / "answers.jsonl", kind=Answer):
            by_reader.setdefault(answer.rater, {}).setdefault(answer.trial, answer)
        return by_reader

    def enter(self, reader: str) -> str:
        """Record a new reader; returns the name as it was first spelled."""
        name = reader_name(reader)
        with self.locked():
            known = self.readers()
            for other in known:
                if other.casefold() == name.casefold():
                    return other
            if len(known) >= MOST_READERS:
                raise UserError(f"{self.id} has {MOST_READERS} readers, which is the most; begin a new reading")
            append_lines(self.folder / "readers.jsonl", [asdict(Entry(time=now(), rater=name))])
        return name

    def append(self, answer: Answer) -> None:
        """Append an answer; the caller holds ``locked`` and knows that the picture has none yet."""
        append_lines(self.folder / "answers.jsonl", [asdict(answer)])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the reading for writing; waits for others, who take moments; ``UserError`` where one hangs."""
        lock = FileLock(self.folder / ".lock")
        with disk_errors_explained(self.folder):
            try:
                lock.acquire(timeout=_WAIT_SECONDS)
            except Timeout:
                raise UserError(f"another process holds {self.folder}; stop it, then answer again") from None
            try:
                yield
            finally:
                lock.release()


def readings(run: Path) -> list[Reading]:
    """All readings of a run, the oldest first."""
    folders = sorted((run / FOLDER).glob("[0-9]*-*/plan.json"))
    return sorted((Reading(path.parent) for path in folders), key=lambda reading: (reading.number, reading.id))


def publish(run: Path, plan: Plan, *, pictures: np.ndarray) -> Reading:
    """Write a new reading, whole or not at all; ``pictures`` (N, H, W, 3) in the order of the plan's trials."""
    with disk_errors_explained(run):
        parent = run / FOLDER
        parent.mkdir(exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=parent))
        try:
            np.save(building / "pictures.npy", pictures)
            # Not from the seed: whoever knows the seed could compute the addresses of real pictures.
            write_bytes(building / "key", secrets.token_hex(32).encode())
            write_json(building / "plan.json", plan.as_json())
            building.chmod(0o755)
            try:
                building.rename(parent / plan.id)
            except OSError as error:
                raise UserError(f"{parent / plan.id} was just made by another process; try again") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return Reading(parent / plan.id)


def reader_name(text: str) -> str:
    """The name, trimmed; ``UserError`` where it is empty, too long, or holds what cannot be seen."""
    name = " ".join(text.split(" ")).strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"a reader's name is one plain line of 1 to {LONGEST_NAME} characters, got {text[:100]!r}")
    return name


def now() -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _records(path: Path, *, kind: type[Record]) -> Iterator[Record]:
    """The records of a file; a line of another shape is left out with a warning."""
    for value in read_lines(path):
        try:
            yield kind(**value)
        except TypeError:
            logger.warning("%s: a line with other fields is left out", path)
