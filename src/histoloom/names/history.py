"""Undo and redo over an append-only journal: which events count, and what a rater's next undo and redo would be.

Both journals of a run, of names and of corrections, are replayed by these two functions. An undo takes back events of
its own rater alone, and a redo brings them back. Events of one ``edit`` are one step, though others may lie between
them: a rater types into several fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class JournalEvent(Protocol):
    """What the history needs of an event; ``of``: the ids that an undo or redo is about; ``sets`` is empty there."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def rater(self) -> str: ...
    @property
    def edit(self) -> str: ...
    @property
    def of(self) -> tuple[str, ...]: ...
    @property
    def sets(self) -> str: ...


@dataclass
class History:
    """The steps of one rater that can be undone and those that can be redone, the next one last: event ids by step."""

    done: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undone: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def undoable(self) -> tuple[str, ...]:
        """The ids of the events that the next undo takes back: all that were typed as one edit."""
        return next(reversed(self.done.values()), ())

    @property
    def redoable(self) -> tuple[str, ...]:
        """The ids of the events that the next redo brings back; none after something new."""
        return next(reversed(self.undone.values()), ())

    def step_with(self, event: str) -> tuple[str, ...]:
        """The ids of the standing step that holds the event of this id; none where it was undone."""
        return next((step for step in self.done.values() if event in step), ())


def undone_events(events: Sequence[JournalEvent]) -> set[str]:
    """The ids of the events that were undone and not brought back."""
    rater_of = {event.id: event.rater for event in events if event.sets}
    undone: set[str] = set()
    for event in events:
        own = {identity for identity in event.of if rater_of.get(identity) == event.rater}
        if event.kind == "undo":
            undone |= own
        elif event.kind == "redo":
            undone -= own
    return undone


def history_of(events: Sequence[JournalEvent], *, rater: str) -> History:
    """The steps of ``rater``."""
    history = History()
    own = [event for event in events if event.rater == rater]
    step_of = {event.id: event.edit or event.id for event in own}
    for event in own:
        step = step_of.get(event.of[0], "") if event.of else step_of[event.id]
        if event.sets:
            history.undone.clear()
            history.done[step] = (*history.done.get(step, ()), event.id)
        elif event.kind == "undo" and history.done.get(step) == event.of:
            history.undone[step] = history.done.pop(step)
        elif event.kind == "redo" and history.undone.get(step) == event.of:
            history.done[step] = history.undone.pop(step)
    return history
