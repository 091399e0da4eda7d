"""What a rater can do: name, colour, flag, merge, undo, redo, and choose whose names count.

Each call checks everything first and appends to the journal, or raises ``UserError`` and writes nothing. ``k`` must be
one of the run's sweep, which the caller checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from histoloom.errors import UserError
from histoloom.names.journal import Event, Kind, append, locked, read_events
from histoloom.names.label_state import raters_of, read_label_state
from histoloom.names.text import valid, valid_colour, valid_edit, valid_flag, valid_name
from histoloom.run.directory import fingerprint


def add_name(run: Path, *, cluster: int, name: str, k: int, rater: str) -> None:
    """Append one name to ``RUN/names.jsonl`` and flush it to the disk."""
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
    """Label a cluster: what is None stays as it is, an empty colour or flag removes it; returns what was appended.

    The cluster's default name removes its name. Undo takes back all that one call set; ``edit``: a token that joins
    several calls.
    """
    label = {"name": name, "colour": colour, "flag": flag}
    if not edit and sum(value is not None for value in label.values()) > 1:
        edit = fingerprint([cluster, k, rater, label, datetime.now(UTC).isoformat()])
    events = label_events(cluster=cluster, k=k, rater=rater, label=label, edit=edit)
    with locked(run):
        return append(run, events)


def label_events(
    *, cluster: int, k: int, rater: str, label: Mapping[str, str | None], edit: str = "", imported_time: str = ""
) -> list[Event]:
    """The events by which ``rater`` sets what ``label`` holds (name, colour, flag) for a cluster; checked."""
    rater = valid(rater, what="rater")
    _check_cluster(cluster, k=k)
    edit = valid_edit(edit)
    values: dict[Kind, str] = {}
    if (name := label.get("name")) is not None:
        values["name"] = valid_name(name, cluster=cluster)
    if (colour := label.get("colour")) is not None:
        values["colour"] = valid_colour(colour)
    if (flag := label.get("flag")) is not None:
        values["flag"] = valid_flag(flag)
    return [
        Event(kind, rater, k=k, members=(cluster,), value=value, edit=edit, imported_time=imported_time)
        for kind, value in values.items()
    ]


def merge(run: Path, *, clusters: Iterable[int], k: int, rater: str, name: str | None = None) -> Event:
    """Make several clusters one tissue: give them one name, in one event.

    ``name``: None for the rater's name of the first of them that has one. Other clusters that already share a name with
    one of ``clusters`` keep it.
    """
    rater, members = valid(rater, what="rater"), tuple(dict.fromkeys(clusters))
    for cluster in members:
        _check_cluster(cluster, k=k)
    if len(members) < 2:
        raise UserError("a merge takes at least two clusters of one k")
    with locked(run):
        labels = read_label_state(run, k=k).labels(rater)
        names = [name] if name is not None else [labels[c].name for c in members if labels[c].name]
        if not names:
            raise UserError(
                f"none of the clusters {', '.join(map(str, members))} has a name yet; name one of them first"
            )
        value = valid(names[0], what="name")
        for cluster in members:
            valid_name(value, cluster=cluster)
        return append(run, [Event("merge", rater, k=k, members=members, value=value)])[0]


def undo(run: Path, *, k: int, rater: str, step: str = "") -> Event:
    """Take back what ``rater`` last did at ``k``; what was typed as one edit is one step.

    ``step``: the id of an event; the step that holds it is taken back, and no other. It must be of this rater, not be
    undone yet, and the rater must not have set the same property of one of its clusters again since.
    """
    rater = rater.strip()
    with locked(run):
        state = read_label_state(run, k=k)
        history = state.history(rater)
        of = history.step_with(step) if step else history.undoable
        if not of:
            gone = f"that step of {rater!r} is undone already, or of another rater or k"
            raise UserError(gone if step else f"nothing to undo for {rater!r} at k = {k}")
        if step and (again := state.set_again(of)):
            numbers = ", ".join(map(str, again))
            raise UserError(
                f"that step can no longer be undone alone: group {numbers} was changed again since; "
                f"undo the later changes first"
            )
        return append(run, [Event("undo", rater, k=k, of=of)])[0]


def redo(run: Path, *, k: int, rater: str) -> Event:
    """Bring back what ``rater`` last took back at ``k``, unless something new came since."""
    rater = rater.strip()
    with locked(run):
        of = read_label_state(run, k=k).history(rater).redoable
        if not of:
            raise UserError(f"nothing to redo for {rater!r} at k = {k}")
        return append(run, [Event("redo", rater, k=k, of=of)])[0]


def choose_reference(run: Path, *, reference: str, by: str) -> Event:
    """Let only the labels of ``reference`` count; an empty one: the latest by anyone, as without a choice."""
    chosen, by = reference.strip(), valid(by, what="rater")
    with locked(run):
        known = raters_of(read_events(run))
        if chosen and chosen not in known:
            there = f"there are {', '.join(map(repr, known))}" if known else "nobody has named anything yet"
            raise UserError(f"no rater {chosen[:200]!r}; {there}")
        return append(run, [Event("reference", by, value=chosen)])[0]


def _check_cluster(cluster: int, *, k: int) -> None:
    if not 0 <= cluster < k:
        raise UserError(f"there is no cluster {cluster} at k = {k}; give a number from 0 to {k - 1}")
