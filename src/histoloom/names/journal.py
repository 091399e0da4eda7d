"""The journal of namings, ``names.jsonl``: events by rater, appended, never rewritten.

An event says one thing of one cluster (a name, a colour, a flag), gives several clusters one name (a merge), or points
at earlier events (undo, redo). One lock, one ``write`` and one ``fsync`` for what is said at once: raters who work at
the same time cannot mix their lines, and a kill loses the last line at most. A cluster is addressed by (k, cluster) and
by the fingerprint of the clustering, because the same number means another group of patches in another.
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
from typing import Any, Literal

from filelock import FileLock, Timeout

from histoloom.errors import UserError
from histoloom.names.text import valid_colour, valid_flag
from histoloom.run.directory import Artifact, disk_errors_explained, fingerprint
from histoloom.run.json_lines import append_lines

logger = logging.getLogger("histoloom")

Kind = Literal["name", "colour", "flag", "merge", "undo", "redo", "reference"]
SAYS: dict[str, str] = {"name": "name", "merge": "name", "colour": "colour", "flag": "flag", "reference": "reference"}
"""Under which key a kind of event has its value."""

LOCK_SECONDS = 10.0

_KINDS = {*SAYS, "undo", "redo"}
_OF_ONE_CLUSTER = {"name", "colour", "flag"}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of ``names.jsonl``.

    ``members`` are the clusters that it is about, ``value`` the name, the colour (``#rrggbb``), the flag, or the rater
    who is the reference; empty takes it back. ``of`` are the ids of the events that an undo or a redo is about;
    ``edit`` joins what was typed in one go, which undo takes back at once. ``time`` is ISO 8601 in UTC, ``given`` the
    time that an imported table gave. ``clusters`` is the clustering's fingerprint; empty in an exported generator.
    """

    kind: Kind
    rater: str
    time: str = ""
    k: int = 0
    members: tuple[int, ...] = ()
    value: str = ""
    of: tuple[str, ...] = ()
    edit: str = ""
    given: str = ""
    clusters: str = ""
    id: str = ""

    @property
    def says(self) -> str:
        """Which property of its clusters it sets: ``name``, ``colour`` or ``flag``; empty for other events."""
        return "" if self.kind == "reference" else SAYS.get(self.kind, "")

    def as_json(self) -> dict[str, Any]:
        """The line's content; a naming reads as it did before there were other events."""
        said: dict[str, Any] = {"id": self.id} if self.id else {}
        said |= {} if self.kind == "name" else {"event": self.kind}
        said |= {"time": self.time, "rater": self.rater}
        if self.kind != "reference":
            said["k"] = self.k
        if self.kind == "merge":
            said["members"] = list(self.members)
        elif self.members:
            said["cluster"] = self.members[0]
        if self.kind in SAYS:
            said[SAYS[self.kind]] = self.value
        more = {"of": list(self.of), "edit": self.edit, "given": self.given}
        return said | {key: value for key, value in more.items() if value} | {"clusters": self.clusters}


def journal_file(run: Path) -> Path:
    """Where the journal of a run or of an exported generator lies."""
    return run / "names.jsonl"


def clustering_of(run: Path) -> str:
    """The fingerprint of the run's clustering; empty where there is none, as in an exported generator."""
    artifact = Artifact.read(run / "clusters")
    return artifact.fingerprint if artifact else ""


class Journal:
    """Reads a journal, and again only what was appended since; safe for several threads."""

    def __init__(self, run: Path) -> None:
        self.path = journal_file(run)
        self._guard = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._read, self._lines, self._file = 0, 0, (0, 0)
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """All whole events in their order; a line torn by a crash is left out with a warning."""
        with self._guard:
            new = self._unread()
            whole = new.rfind(b"\n") + 1
            self._events += self._parsed(new[:whole])
            self._lines += new.count(b"\n")
            self._read += whole
            return [*self._events, *self._parsed(new[whole:])]

    def _unread(self) -> bytes:
        """What was appended; all of it where another file took the journal's place."""
        if not self.path.is_file():
            self._forget()
            return b""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != self._file or about.st_size < self._read:
                self._forget()
                self._file = (about.st_dev, about.st_ino)
            file.seek(self._read)
            return file.read()

    def _parsed(self, data: bytes) -> list[Event]:
        found = []
        for number, line in enumerate(data.split(b"\n"), start=self._lines + 1):
            if not line.strip():
                continue
            try:
                found.append(_parse(line, number=number))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError, UserError):
                logger.warning("%s: line %d is torn and left out", self.path, number)
        return found


def read_events(run: Path) -> list[Event]:
    """All whole events of a run in their order; a line torn by a crash is left out with a warning."""
    return Journal(run).events()


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the names of ``run`` for writing; ``UserError`` where another process does not let go of them."""
    with disk_errors_explained(run):
        # Resolved: a run may be made of links, and a lock is not taken through one.
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
    """Append ``events`` as they are, with an id, the time and the clustering; the caller holds ``locked``.

    They are on the disk when this returns. Several are written at once: all of them count, or, after a crash, the
    first ones.
    """
    now, clustering = datetime.now(UTC).isoformat(timespec="milliseconds"), clustering_of(run)
    stamped = [replace(event, time=now, clusters=clustering) for event in events]
    with disk_errors_explained(run):
        return _write(journal_file(run), stamped)


def _write(path: Path, events: Sequence[Event]) -> list[Event]:
    """Append events, on the disk when this returns; an id depends on the place in the file, so the lock is held."""
    size = path.stat().st_size if path.exists() else 0
    named = [replace(e, id=_identity([size, place, e.as_json()])) for place, e in enumerate(events)]
    append_lines(path, [event.as_json() for event in named])
    return named


def _identity(value: Any) -> str:
    return fingerprint(value)[:12]


def _parse(line: bytes, *, number: int) -> Event:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line is one object")
    kind = value.get("event", "name")
    if kind not in _KINDS:
        raise ValueError(f"no such event: {kind}")
    said = _checked(str(value[SAYS[kind]]), kind=kind) if kind in SAYS else ""
    rater = str(value["rater"])
    f"{said}{rater}".encode()  # half of a surrogate pair can be read, and written nowhere
    return Event(
        kind=kind,
        rater=rater,
        time=str(value["time"]),
        k=0 if kind == "reference" else int(value["k"]),
        members=_members(value, kind=kind),
        value=said,
        of=tuple(str(identity) for identity in value.get("of", ())),
        edit=str(value.get("edit", "")),
        given=str(value.get("given", "")),
        clusters=str(value.get("clusters", "")),
        id=str(value["id"]) if "id" in value else _identity([number, line.decode("utf-8", "replace")]),
    )


def _checked(said: str, *, kind: Kind) -> str:
    """What an event says; colours are put into style sheets, where nothing else may stand, whoever wrote the file."""
    if kind == "colour":
        return valid_colour(said)
    return valid_flag(said) if kind == "flag" else said


def _members(value: dict[str, Any], *, kind: Kind) -> tuple[int, ...]:
    if kind == "merge":
        return tuple(int(cluster) for cluster in value["members"])
    return (int(value["cluster"]),) if kind in _OF_ONE_CLUSTER else ()
