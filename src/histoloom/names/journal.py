"""The journal of namings, ``names.jsonl``: events by rater, appended, never rewritten.

An event sets one property of one cluster (a name, a colour, a flag), gives several clusters one name (a merge), or
refers to earlier events (undo, redo). What one call appends is one lock, one ``write`` and one ``fsync``: raters who
work at the same time cannot mix their lines, and a kill loses the last line at most. A cluster is addressed by
(k, cluster) and by the fingerprint of the clustering, because the same number means other patches in another one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from filelock import FileLock, Timeout

from histoloom.errors import UserError
from histoloom.names.text import valid_colour, valid_flag
from histoloom.run.directory import Artifact, disk_errors_explained, fingerprint
from histoloom.run.json_lines import append_lines

logger = logging.getLogger("histoloom")

Kind = Literal["name", "colour", "flag", "merge", "undo", "redo", "reference"]
VALUE_KEYS: dict[str, str] = {
    "name": "name",
    "merge": "name",
    "colour": "colour",
    "flag": "flag",
    "reference": "reference",
}
"""The JSON key of each kind's value; it is also the property that the event sets."""

LOCK_SECONDS = 10.0

NO_EVENT = (ValueError, TypeError, KeyError, OverflowError, RecursionError, UserError)
"""What reading a line raises that is no event: torn by a crash, or written by hand."""

E = TypeVar("E", covariant=True)


class ParseLine(Protocol[E]):
    """Reads one line of a journal."""

    def __call__(self, line: bytes, *, number: int) -> E: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One line of ``names.jsonl``.

    ``members``: the clusters that it is about. ``value``: the name, the colour (``#rrggbb``), the flag, or the
    rater who is the reference; empty removes it. ``of``: the ids of the events that an undo or a redo is about.
    ``edit`` joins events that were typed as one, which undo takes back together. ``time`` is ISO 8601 in UTC;
    ``imported_time`` is the time in an imported table. ``clustering``: the fingerprint of the clustering; empty in an
    exported generator.
    """

    kind: Kind
    rater: str
    time: str = ""
    k: int = 0
    members: tuple[int, ...] = ()
    value: str = ""
    of: tuple[str, ...] = ()
    edit: str = ""
    imported_time: str = ""
    clustering: str = ""
    id: str = ""

    @property
    def sets(self) -> str:
        """Which property of its clusters it sets: ``name``, ``colour`` or ``flag``; empty for other events."""
        return "" if self.kind == "reference" else VALUE_KEYS.get(self.kind, "")

    def as_json(self) -> dict[str, object]:
        """The content of its line. Names keep the form that they had before there were other events."""
        values: dict[str, object] = {"id": self.id} if self.id else {}
        if self.kind != "name":
            values["event"] = self.kind
        values |= {"time": self.time, "rater": self.rater}
        if self.kind != "reference":
            values["k"] = self.k
        if self.kind == "merge":
            values["members"] = list(self.members)
        elif self.members:
            values["cluster"] = self.members[0]
        if self.kind in VALUE_KEYS:
            values[VALUE_KEYS[self.kind]] = self.value
        further = {"of": list(self.of), "edit": self.edit, "given": self.imported_time}
        return values | {key: value for key, value in further.items() if value} | {"clusters": self.clustering}

    @staticmethod
    def parse(line: bytes, *, number: int) -> Event:
        """Read a line, the journal's ``number``-th; ``ValueError``, ``TypeError`` or ``KeyError`` where it is none."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("a line is one object")
        kind: Kind = values.get("event", "name")
        if kind not in {*VALUE_KEYS, "undo", "redo"}:
            raise ValueError(f"no such event: {kind}")

        value, rater = str(values[VALUE_KEYS[kind]]) if kind in VALUE_KEYS else "", str(values["rater"])
        if kind == "colour":
            value = valid_colour(value)  # colours are put into style sheets, whoever wrote the file
        elif kind == "flag":
            value = valid_flag(value)
        f"{value}{rater}".encode()  # half of a surrogate pair can be read, but not written anywhere

        if kind == "merge":
            members = tuple(int(cluster) for cluster in values["members"])
        else:
            members = (int(values["cluster"]),) if kind in {"name", "colour", "flag"} else ()
        return Event(
            kind=kind,
            rater=rater,
            time=str(values["time"]),
            k=0 if kind == "reference" else int(values["k"]),
            members=members,
            value=value,
            of=tuple(str(identity) for identity in values.get("of", ())),
            edit=str(values.get("edit", "")),
            imported_time=str(values.get("given", "")),
            clustering=str(values.get("clusters", "")),
            id=str(values["id"]) if "id" in values else event_id(number, line.decode("utf-8", "replace")),
        )


def event_id(*parts: object) -> str:
    """The id of an event, from its content and its place in the file."""
    return fingerprint(list(parts))[:12]


def journal_file(run: Path) -> Path:
    """Where the journal of a run or of an exported generator lies."""
    return run / "names.jsonl"


def clustering_of(run: Path) -> str:
    """The fingerprint of the run's clustering; empty where there is none, as in an exported generator."""
    artifact = Artifact.read(run / "clusters")
    return artifact.fingerprint if artifact else ""


class Journal(Generic[E]):
    """Reads a journal, and later only what was appended since; safe for several threads.

    ``parse`` reads a line, which is the ``number``-th; what it raises for a line that is none is in ``NO_EVENT``.
    """

    def __init__(self, path: Path, *, parse: ParseLine[E]) -> None:
        self.path, self._parse = path, parse
        self._guard = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._read, self._lines, self._file = 0, 0, (0, 0)
        self._events: list[E] = []

    def events(self) -> list[E]:
        """All whole events in their order; a line torn by a crash is left out with a warning."""
        with self._guard:
            if not self.path.is_file():
                self._reset()
                return []
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._read:
                    self._reset()  # another file took the journal's place
                    self._file = (status.st_dev, status.st_ino)
                file.seek(self._read)
                new = file.read()

            whole = new.rfind(b"\n") + 1
            self._events += self._parse_lines(new[:whole])
            self._lines += new.count(b"\n")
            self._read += whole
            return [*self._events, *self._parse_lines(new[whole:])]

    def _parse_lines(self, data: bytes) -> list[E]:
        events = []
        for number, line in enumerate(data.split(b"\n"), start=self._lines + 1):
            if not line.strip():
                continue
            try:
                events.append(self._parse(line, number=number))
            except NO_EVENT:
                logger.warning("%s: line %d is torn and left out", self.path, number)
        return events


def names_journal(run: Path) -> Journal[Event]:
    """The journal of names of a run or of an exported generator."""
    return Journal(journal_file(run), parse=Event.parse)


def read_events(run: Path) -> list[Event]:
    """All whole events of a run in their order; a line torn by a crash is left out with a warning."""
    return names_journal(run).events()


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the names of ``run`` for writing; ``UserError`` where another process keeps holding them."""
    with disk_errors_explained(run):
        # Resolved: a run may be made of links, and FileLock does not follow one.
        lock = FileLock((run / ".names.lock").resolve(), timeout=LOCK_SECONDS, poll_interval=0.005)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process holds the names of {run}; wait for it, or stop it, and try again"
            ) from None
        try:
            yield
        finally:
            lock.release()


def append(run: Path, events: Sequence[Event]) -> list[Event]:
    """Append ``events``, with ids, the time and the clustering; the caller holds ``locked``.

    They are on the disk when this returns. Several are written at once: all of them count, or, after a crash, the
    first ones.
    """
    path, now, clustering = journal_file(run), datetime.now(UTC).isoformat(timespec="milliseconds"), clustering_of(run)
    stamped = [replace(event, time=now, clustering=clustering) for event in events]
    size = path.stat().st_size if path.exists() else 0  # an id depends on the place in the file
    stamped = [replace(event, id=event_id(size, place, event.as_json())) for place, event in enumerate(stamped)]
    with disk_errors_explained(run):
        append_lines(path, [event.as_json() for event in stamped])
    return stamped
