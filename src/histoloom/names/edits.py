"""What a rater can do: name, colour, flag, merge, undo, redo, and choose whose names count.

Each call checks everything first and appends to the journal, or raises ``UserError`` and writes nothing. ``k`` must be
one of the run's sweep, which the caller checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from histoloom.errors import UserError
from histoloom.names.journal import Event, Kind, append, clustering_of, locked, read_events
from histoloom.names.label_state import LabelState, raters_of
from histoloom.names.text import valid, valid_colour, valid_edit, valid_flag, valid_name
from histoloom.run.directory import fingerprint


def add_name(run: Path, *, cluster: int, name: str, k: int, rater: str) -> None:
    """Append one naming to ``RUN/names.jsonl`` and flush it to the disk."""
    add_label(run, cluster=cluster, k=k, rater=rater, name=name)


def add_label(
    run: Path,
    *,
    cluster: int,
    k: int,
    rater: str,
    name: str | None = None,
    colour: str | None = None,
    flag: str | None = None,
    edit: str = "",
) -> list[Event]:
    """Say something of a cluster: what is None stays as it is, an empty colour or flag is taken back.

    The cluster's default name takes its name back. Undo takes back what one call said; ``edit``: a token that joins
    several calls. Returns what was appended.
    """
    said = {"name": name, "colour": colour, "flag": flag}
    if not edit and sum(value is not None for value in said.values()) > 1:
        edit = fingerprint([cluster, k, rater, said, datetime.now(UTC).isoformat()])
    events = label_events(cluster=cluster, k=k, rater=rater, said=said, edit=edit)
    with locked(run):
        return append(run, events)


def label_events(
    *, cluster: int, k: int, rater: str, said: Mapping[str, str | None], edit: str = "", given: str = ""
) -> list[Event]:
    """The events by which ``rater`` says of a cluster what is in ``said`` (name, colour, flag); checked."""
    who = valid(rater, what="rater")
    _check_cluster(cluster, k=k)
    edit = valid_edit(edit)
    values: dict[Kind, str] = {}
    if (name := said.get("name")) is not None:
        values["name"] = valid_name(name, cluster=cluster)
    if (colour := said.get("colour")) is not None:
        values["colour"] = valid_colour(colour)
    if (flag := said.get("flag")) is not None:
        values["flag"] = valid_flag(flag)
    return [
        Event(kind, who, k=k, members=(cluster,), value=value, edit=edit, given=given) for kind, value in values.items()
    ]


def merge(run: Path, *, clusters: Iterable[int], k: int, rater: str, name: str | None = None) -> Event:
    """Make several clusters one tissue: give them one name, in one event.

    ``name``: None for the one that the rater gave to the first of them that has one. Clusters that already share a name
    with one of ``clusters`` come along only where they are among them.
    """
    who, members = valid(rater, what="rater"), tuple(dict.fromkeys(clusters))
    for cluster in members:
        _check_cluster(cluster, k=k)
    if len(members) < 2:
        raise UserError("a merge takes at least two clusters of one k")
    with locked(run):
        labels = _book(run, k=k).labels(who)
        names = [name] if name is not None else [labels[c].name for c in members if labels[c].name]
        if not names:
            raise UserError(
                f"none of the clusters {', '.join(map(str, members))} has a name yet; name one of them first"
            )
        value = valid(names[0], what="name")
        for cluster in members:
            valid_name(value, cluster=cluster)
        return append(run, [Event("merge", who, k=k, members=members, value=value)])[0]


def undo(run: Path, *, k: int, rater: str) -> Event:
    """Take back what ``rater`` last did at ``k``; what was typed in one go is one thing."""
    with locked(run):
        of = _book(run, k=k).undoable(rater.strip())
        if not of:
            raise UserError(f"nothing to undo for {rater.strip()!r} at k = {k}")
        return append(run, [Event("undo", rater.strip(), k=k, of=of)])[0]


def redo(run: Path, *, k: int, rater: str) -> Event:
    """Bring back what ``rater`` last took back at ``k``, where nothing new came since."""
    with locked(run):
        of = _book(run, k=k).redoable(rater.strip())
        if not of:
            raise UserError(f"nothing to redo for {rater.strip()!r} at k = {k}")
        return append(run, [Event("redo", rater.strip(), k=k, of=of)])[0]


def choose_reference(run: Path, *, reference: str, by: str) -> Event:
    """Let only the names of ``reference`` count; an empty one: the latest by anyone, as in the beginning."""
    chosen, who = reference.strip(), valid(by, what="rater")
    with locked(run):
        known = raters_of(read_events(run))
        if chosen and chosen not in known:
            there = f"there are {', '.join(map(repr, known))}" if known else "nobody has named anything yet"
            raise UserError(f"no rater {chosen[:200]!r}; {there}")
        return append(run, [Event("reference", who, value=chosen)])[0]


def append_all(run: Path, events: Sequence[Event]) -> list[Event]:
    """Append events that were checked, in one write."""
    with locked(run):
        return append(run, events)


def _check_cluster(cluster: int, *, k: int) -> None:
    if not 0 <= cluster < k:
        raise UserError(f"there is no cluster {cluster} at k = {k}; give a number from 0 to {k - 1}")


def _book(run: Path, *, k: int) -> LabelState:
    return LabelState(read_events(run), k=k, clustering=clustering_of(run))
