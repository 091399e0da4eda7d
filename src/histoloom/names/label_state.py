"""What counts: the journal replayed. Each rater's names, colours and flags, and those that all others use.

*One rule says whose count.* Of each cluster, the latest name by anyone counts, and the same of its colour and its flag;
who takes back a name, or undoes it, no longer has one. Where a rater was chosen as the reference, only what that rater
said counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from histoloom.names.journal import Event
from histoloom.names.text import default_name, plain


@dataclass(frozen=True, slots=True)
class Label:
    """What is said of a cluster; empty where nothing is. ``colour`` is ``#rrggbb``, ``time`` ISO 8601 in UTC."""

    name: str = ""
    colour: str = ""
    flag: str = ""
    time: str = ""

    @property
    def empty(self) -> bool:
        """Whether it says nothing."""
        return not (self.name or self.colour or self.flag)


class LabelState:
    """What the raters said of the ``k`` clusters of one clustering."""

    def __init__(self, events: Sequence[Event], *, k: int, clustering: str) -> None:
        """``events`` are all of a journal; only those of ``k`` and of ``clustering`` (a fingerprint) are taken."""
        self.k, self.clustering = k, clustering
        self.reference = reference_of(events)
        self._events = [event for event in events if event.k == k and event.clusters in ("", clustering)]
        undone = _undone(self._events)
        self._last = _last_said([event for event in self._events if event.says and event.id not in undone], k=k)

    @property
    def raters(self) -> list[str]:
        """Who said something that stands, in the order in which they began."""
        return list(dict.fromkeys(said.rater for said in self._last if said.value))

    def labels(self, rater: str) -> dict[int, Label]:
        """What one rater says of each cluster, in the clusters' order; an empty label where nothing."""
        return self._joined(said for said in self._last if said.rater == rater)

    def counting(self) -> dict[int, Label]:
        """What counts of each cluster, in the clusters' order; an empty label where nothing does."""
        if self.reference:
            return self.labels(self.reference)
        return self._joined(said for said in self._last if said.value)

    def _joined(self, parts: Iterable[_Said]) -> dict[int, Label]:
        labels = {cluster: Label() for cluster in range(self.k)}
        for said in sorted(parts, key=lambda said: said.place):
            labels[said.cluster] = replace(labels[said.cluster], time=said.time, **{said.what: said.value})
        return labels

    def undoable(self, rater: str) -> tuple[str, ...]:
        """The ids of the events that the rater's next undo takes back: all that were typed in one go."""
        return next(reversed(self._past(rater)[0].values()), ())

    def redoable(self, rater: str) -> tuple[str, ...]:
        """The ids of the events that the rater's next redo brings back; none after something new."""
        return next(reversed(self._past(rater)[1].values()), ())

    def _past(self, rater: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        """What may be undone and what redone, the next one last.

        Events of one ``edit`` are one step, though others may stand between them: fields are kept side by side.
        """
        done: dict[str, tuple[str, ...]] = {}
        undone: dict[str, tuple[str, ...]] = {}
        mine = [event for event in self._events if event.rater == rater]
        step_of = {event.id: event.edit or event.id for event in mine}
        for event in mine:
            step = step_of.get(event.of[0], "") if event.of else step_of[event.id]
            if event.says:
                undone.clear()
                done[step] = (*done.get(step, ()), event.id)
            elif event.kind == "undo" and done.get(step) == event.of:
                undone[step] = done.pop(step)
            elif event.kind == "redo" and undone.get(step) == event.of:
                done[step] = undone.pop(step)
        return done, undone


def reference_of(events: Sequence[Event]) -> str:
    """The rater who was last chosen as the reference; empty where the latest by anyone counts."""
    return next((event.value for event in reversed(events) if event.kind == "reference"), "")


def raters_of(events: Sequence[Event]) -> list[str]:
    """Everybody who ever said something of a cluster, in the order in which they began."""
    return list(dict.fromkeys(event.rater for event in events if event.says))


def _undone(events: Sequence[Event]) -> set[str]:
    """The ids of events that are taken back. An undo reaches its own rater's events alone."""
    whose = {event.id: event.rater for event in events if event.says}
    undone: set[str] = set()
    for event in events:
        own = {identity for identity in event.of if whose.get(identity) == event.rater}
        if event.kind == "undo":
            undone |= own
        elif event.kind == "redo":
            undone -= own
    return undone


@dataclass(frozen=True, slots=True)
class _Said:
    """The last word of a rater on one property (``what``) of a cluster; ``place`` is its own in the journal."""

    rater: str
    cluster: int
    what: str
    value: str
    time: str
    place: int


def _last_said(standing: Sequence[Event], *, k: int) -> list[_Said]:
    """The last word of each rater on each property of each cluster, in the order of their first."""
    last: dict[tuple[str, int, str], tuple[int, Event]] = {}
    for place, event in enumerate(standing):
        for cluster in event.members:
            if 0 <= cluster < k:
                last[event.rater, cluster, event.says] = place, event
    return [
        _Said(rater, cluster, what, _value(event, cluster=cluster), event.given or event.time, place)
        for (rater, cluster, what), (place, event) in last.items()
    ]


def _value(event: Event, *, cluster: int) -> str:
    """What the event sets; a cluster's own default name is no name."""
    return "" if event.says == "name" and plain(event.value) == default_name(cluster) else event.value
