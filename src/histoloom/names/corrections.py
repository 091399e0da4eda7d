"""Corrections of single patches, ``RUN/corrections.jsonl``: events like those of names, appended, never rewritten.

A correction gives patches a target at one k: a cluster, whose tissue they show; a name, also one that no cluster has;
no tissue at all; or their own cluster again. The latest correction of a patch by anyone counts, or that of the rater
who was chosen as the reference for names. A rater can undo a step, also one that others have followed. Like names,
corrections are of one clustering: after a new one they count no longer, and they stay in the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from histoloom.errors import UserError
from histoloom.names.history import History, history_of, undone_events
from histoloom.names.journal import Journal, clustering_of, event_id, locked, read_events
from histoloom.names.label_state import (
    Label,
    LabelState,
    current_labels,
    display_labels,
    reference_of,
    tissues_of,
)
from histoloom.names.text import NUMBER, normalised, valid, valid_edit
from histoloom.run.directory import disk_errors_explained
from histoloom.run.json_lines import append_lines

FILE = "corrections.jsonl"
NO_TISSUE = "(no tissue)"
"""What stands for the name of a patch that shows no tissue."""

Target: TypeAlias = int | str | None
"""Where patches belong: the tissue of a cluster (its number); a name; no tissue (""); their own cluster (None)."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One line of ``corrections.jsonl``.

    ``patches``: ids; ``of``: the ids of the events that an undo or a redo is about; ``edit`` joins events that are one
    step. ``time`` is ISO 8601 in UTC; ``clustering``: the fingerprint of the clustering.
    """

    kind: Literal["correct", "undo", "redo"]
    rater: str
    k: int
    patches: tuple[str, ...] = ()
    target: Target = None
    of: tuple[str, ...] = ()
    edit: str = ""
    time: str = ""
    clustering: str = ""
    id: str = ""

    @property
    def sets(self) -> str:
        """What it sets; empty for an undo and a redo."""
        return "target" if self.kind == "correct" else ""

    def as_json(self) -> dict[str, object]:
        """The content of its line."""
        values: dict[str, object] = {"id": self.id} if self.id else {}
        values |= {"event": self.kind, "time": self.time, "rater": self.rater, "k": self.k}
        if self.kind == "correct":
            values["name" if isinstance(self.target, str) else "cluster"] = self.target
            values["patches"] = list(self.patches)
        further = {"of": list(self.of), "edit": self.edit}
        return values | {key: value for key, value in further.items() if value} | {"clusters": self.clustering}

    @staticmethod
    def parse(line: bytes, *, number: int) -> Correction:
        """Read a line, the journal's ``number``-th; an error of ``journal.NO_EVENT`` where it is none."""
        values = json.loads(line)
        kind = values["event"]
        if kind not in ("correct", "undo", "redo"):
            raise ValueError(f"no such event: {kind}")
        target: Target = None
        if kind == "correct":
            cluster = None if "name" in values else values["cluster"]
            target = str(values["name"]) if "name" in values else None if cluster is None else int(cluster)
        if isinstance(target, int) and not 0 <= target < int(values["k"]):
            raise ValueError("no such cluster")
        f"{target}{values['rater']}".encode()  # half of a surrogate pair can be read, but not written anywhere
        return Correction(
            kind,
            rater=str(values["rater"]),
            k=int(values["k"]),
            patches=tuple(str(patch) for patch in values.get("patches", ())),
            target=target,
            of=tuple(str(identity) for identity in values.get("of", ())),
            edit=str(values.get("edit", "")),
            time=str(values["time"]),
            clustering=str(values["clusters"]),
            id=str(values["id"]) if "id" in values else event_id(number, line.decode("utf-8", "replace")),
        )


class CorrectionState:
    """The corrections at ``k`` of one clustering, by rater; ``events`` are all of a journal."""

    def __init__(self, events: Sequence[Correction], *, k: int, clustering: str, reference: str = "") -> None:
        """``reference``: the rater whose corrections alone count; empty where the latest by anyone does."""
        self.reference = reference
        self._events = [event for event in events if event.k == k and event.clustering == clustering]
        undone = undone_events(self._events)
        self._standing = [event for event in self._events if event.sets and event.id not in undone]

    @property
    def last(self) -> str:
        """The id of the last event, undos included; empty where there is none."""
        return self._events[-1].id if self._events else ""

    def effective(self) -> dict[str, int | str]:
        """The target that counts for each corrected patch, by patch id."""
        targets = {patch: event.target for patch, event in self.effective_events().items()}
        return {patch: target for patch, target in targets.items() if target is not None}

    def effective_events(self) -> dict[str, Correction]:
        """The event that counts for each corrected patch, by patch id; none where it is in its own cluster again."""
        latest = self._latest(self._standing)
        return {patch: event for patch, event in latest.items() if event.target is not None}

    def _latest(self, events: Iterable[Correction]) -> dict[str, Correction]:
        latest: dict[str, Correction] = {}
        for event in events:
            if not self.reference or event.rater == self.reference:
                latest |= dict.fromkeys(event.patches, event)
        return latest

    def step_title(self, step: Sequence[str], *, labels: Mapping[int, Label]) -> str:
        """What a step (ids of events) did, such as ``3 patches: fat``; empty where it is none."""
        events = [event for event in self._events if event.id in step]
        if not events:
            return ""
        targets = {event.target for event in events}
        names = target_names([target for target in targets if target is not None], labels=labels)
        title = names[target] if len(targets) == 1 and (target := events[0].target) is not None else ""
        n = len({patch for event in events for patch in event.patches})
        back = "back to their own groups" if targets == {None} else "several groups"
        return f"{n:,} {'patch' if n == 1 else 'patches'}: {title or back}"

    def corrected_in(self, edit: str, *, rater: str) -> dict[str, Target]:
        """The targets that steps of ``rater`` gave whose edit begins with ``edit``, where they are the rater's latest.

        By patch id.
        """
        latest: dict[str, Correction] = {}
        for event in self._standing:
            if event.rater == rater:
                latest |= dict.fromkeys(event.patches, event)
        return {patch: event.target for patch, event in latest.items() if event.edit.startswith(edit)}

    def without(self, edit: str) -> dict[str, Target]:
        """What would count without the steps whose edit begins with ``edit``, by patch id."""
        latest = self._latest(event for event in self._standing if not event.edit.startswith(edit))
        return {patch: event.target for patch, event in latest.items()}

    def history(self, rater: str) -> History:
        """The rater's steps that can be undone and redone."""
        return history_of(self._events, rater=rater)

    def changed_again(self, step: Sequence[str]) -> int:
        """How many patches of a step (ids of one rater's events) that rater has corrected again since."""
        in_step = [event for event in self._standing if event.id in step]
        if not in_step:
            return 0
        later = self._standing[self._standing.index(in_step[-1]) + 1 :]
        again = {patch for event in later if event.rater == in_step[0].rater for patch in event.patches}
        return len({patch for event in in_step for patch in event.patches} & again)


def corrections_journal(run: Path) -> Journal[Correction]:
    """The journal of a run."""
    return Journal(run / FILE, parse=Correction.parse)


def read_correction_state(run: Path, *, k: int) -> CorrectionState:
    """The corrections at ``k`` of the run's present clustering."""
    events, reference = corrections_journal(run).events(), reference_of(read_events(run))
    return CorrectionState(events, k=k, clustering=clustering_of(run), reference=reference)


def current_corrections(run: Path, *, k: int) -> dict[str, str]:
    """The name that each corrected patch of the present clusters has at ``k``, by patch id; ``NO_TISSUE`` for none."""
    targets = read_correction_state(run, k=k).effective()
    names = target_names(targets.values(), labels=current_labels(run, k=k)) if targets else {}
    return {patch: names[target] for patch, target in targets.items()}


@dataclass(frozen=True)
class CorrectedTissues:
    """What the corrections at one k come to, in numbers: clusters keep theirs, and ``names`` are numbered on from k.

    ``names``: those that no cluster has. ``numbers``: those of the tissue of each corrected patch, by patch id: several
    where clusters share a name, none for no tissue.
    """

    names: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]


def corrected_tissues(run: Path, *, k: int, clustering: str | None = None) -> CorrectedTissues:
    """The corrections that count at ``k`` for a clustering (its fingerprint), None: the run's present one."""
    clustering = clustering_of(run) if clustering is None else clustering
    names, events = read_events(run), corrections_journal(run).events()
    targets = CorrectionState(events, k=k, clustering=clustering, reference=reference_of(names)).effective()
    labels = display_labels(LabelState(names, k=k, clustering=clustering).effective()) if targets else {}
    name_of = target_names(targets.values(), labels=labels)
    corrections = {patch: name_of[target] for patch, target in targets.items()}

    numbers: dict[str, tuple[int, ...]] = {normalised(NO_TISSUE): ()}
    for clusters in tissues_of(labels).values():
        numbers[normalised(labels[clusters[0]].name)] = clusters
    spelled = {normalised(name): name for name in corrections.values()}
    new = tuple(spelled[key] for key in sorted(spelled.keys() - numbers.keys()))
    numbers |= {normalised(name): (number,) for number, name in enumerate(new, start=k)}
    return CorrectedTissues(new, {patch: numbers[normalised(name)] for patch, name in corrections.items()})


def target_names(targets: Iterable[int | str], *, labels: Mapping[int, Label]) -> dict[int | str, str]:
    """The name of each target: that of its cluster, or as a cluster of the same name spells it; ``NO_TISSUE`` for "".

    ``labels``: of the clusters, as ``current_labels`` returns them.
    """
    spelled = {normalised(label.name): label.name for label in reversed(list(labels.values()))}
    names: dict[int | str, str] = {}
    for target in targets:
        if isinstance(target, int):
            names[target] = labels[target].name
        else:
            names[target] = spelled.setdefault(normalised(target), target) if target else NO_TISSUE
    return names


def correct(run: Path, *, patches: Sequence[str], target: Target, k: int, rater: str, edit: str = "") -> Correction:
    """Give patches, by id, a target at ``k``; it is on the disk when this returns.

    The caller checks that the run has these patches and this k. ``UserError`` for no patches, for a cluster that ``k``
    does not have, and for a name that reads as a cluster's number.
    """
    event = correction_event(patches=patches, target=target, k=k, rater=rater, edit=edit)
    with locked(run):
        return append_corrections(run, [event])[0]


def correction_event(*, patches: Sequence[str], target: Target, k: int, rater: str, edit: str = "") -> Correction:
    """The event of ``correct``, checked."""
    unique = tuple(dict.fromkeys(patches))
    if not unique:
        raise UserError("no patches are selected; select at least one")
    if isinstance(target, int) and not 0 <= target < k:
        raise UserError(f"there is no cluster {target} at k = {k}; give a number from 0 to {k - 1}")
    if isinstance(target, str) and target.strip():
        target = valid(target, what="name")
        if NUMBER.fullmatch(target):
            raise UserError(f"the name {target!r} reads as a cluster's number; describe the tissue in words")
    elif isinstance(target, str):
        target = ""
    return Correction("correct", valid(rater, what="rater"), k, unique, target, edit=valid_edit(edit))


def undo_correction(run: Path, *, k: int, rater: str, step: str = "") -> Correction:
    """Undo the rater's last step at ``k``, or exactly the one that holds the event ``step``.

    ``UserError`` where there is none, where it is of another rater, and where the rater has corrected one of its
    patches again since.
    """
    rater = rater.strip()
    with locked(run):
        state = read_correction_state(run, k=k)
        history = state.history(rater)
        of = history.step_with(step) if step else history.undoable
        if not of:
            gone = f"that step of {rater!r} is undone already, or of another rater or k"
            raise UserError(gone if step else f"nothing to undo for {rater!r} at k = {k}")
        if step and (again := state.changed_again(of)):
            raise UserError(
                f"that step can no longer be undone alone: {again} of its patches were corrected again since; "
                "undo the later corrections first"
            )
        return append_corrections(run, [Correction("undo", rater, k, of=of)])[0]


def redo_correction(run: Path, *, k: int, rater: str) -> Correction:
    """Bring back what ``rater`` last undid at ``k``, unless something new came since."""
    rater = rater.strip()
    with locked(run):
        of = read_correction_state(run, k=k).history(rater).redoable
        if not of:
            raise UserError(f"nothing to redo for {rater!r} at k = {k}")
        return append_corrections(run, [Correction("redo", rater, k, of=of)])[0]


def append_corrections(run: Path, events: Sequence[Correction]) -> list[Correction]:
    """Append events, with ids, the time and the clustering, at once; the caller holds ``locked``."""
    path, now, clustering = run / FILE, datetime.now(UTC).isoformat(timespec="milliseconds"), clustering_of(run)
    size = path.stat().st_size if path.exists() else 0  # an id depends on the place in the file
    stamped = [replace(event, time=now, clustering=clustering) for event in events]
    stamped = [replace(event, id=event_id(size, place, event.as_json())) for place, event in enumerate(stamped)]
    with disk_errors_explained(run):
        append_lines(path, [event.as_json() for event in stamped])
    return stamped


def counts_by_name(corrections: Mapping[str, str]) -> dict[str, int]:
    """How many patches have each name, most first; ``corrections`` as from ``current_corrections``."""
    return dict(Counter(corrections.values()).most_common())
