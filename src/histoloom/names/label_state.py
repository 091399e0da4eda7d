"""The labels that count: the journal replayed, and what the rest of the program asks of it.

*One rule says whose labels count.* For each cluster, the latest name by anyone counts, with that rater's flag; where
nobody named it, the latest flag counts. The latest colour by anyone counts. A rater who removes a name, or undoes it,
no longer has one. Where a rater was chosen as the reference, only that rater's labels count. Clusters with the same
name are one tissue: whoever draws a tissue draws over all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from histoloom.errors import UserError
from histoloom.names.history import History, history_of, undone_events
from histoloom.names.journal import Event, clustering_of, read_events
from histoloom.names.text import NUMBER, default_name, normalised


@dataclass(frozen=True, slots=True)
class Label:
    """A cluster's label; empty where nothing is set. ``colour`` is ``#rrggbb``, ``time`` ISO 8601 in UTC."""

    name: str = ""
    colour: str = ""
    flag: str = ""
    time: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing is set."""
        return not (self.name or self.colour or self.flag)


@dataclass(frozen=True, slots=True)
class _Setting:
    """The latest value that a rater set for a property of a cluster; ``place``: its event's place in the journal."""

    rater: str
    cluster: int
    property: str
    value: str
    time: str
    place: int


class LabelState:
    """The labels of the ``k`` clusters of one clustering, by rater."""

    def __init__(
        self, events: Sequence[Event], *, k: int, clustering: str, synonyms: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """``events`` are all of a journal; only those of ``k`` and of ``clustering`` (a fingerprint) are used.

        ``synonyms``: the name that stands for each name with synonyms, for comparisons (``canonical_names``).
        """
        self.k, self.clustering, self.synonyms = k, clustering, synonyms
        self.reference = reference_of(events)
        self._events = [event for event in events if event.k == k and event.clustering in ("", clustering)]

        undone = undone_events(self._events)

        # The latest value of each rater for each property of each cluster, in the order of their first ones.
        latest: dict[tuple[str, int, str], _Setting] = {}
        standing = [event for event in self._events if event.sets and event.id not in undone]
        for place, event in enumerate(standing):
            for cluster in event.members:
                if 0 <= cluster < k:
                    # A cluster's own default name is no name.
                    is_default = event.sets == "name" and normalised(event.value) == default_name(cluster)
                    value, time = "" if is_default else event.value, event.imported_time or event.time
                    key = event.rater, cluster, event.sets
                    latest[key] = _Setting(*key, value, time, place)
        self._latest = list(latest.values())
        self._standing = standing

    def compared(self, name: str) -> str:
        """The form in which a name is compared with those of others: normalised, and one for all its synonyms."""
        return self.synonyms.get(normalised(name), normalised(name))

    @property
    def raters(self) -> list[str]:
        """Everybody with a label that is set, in the order in which they began."""
        return list(dict.fromkeys(setting.rater for setting in self._latest if setting.value))

    def labels(self, rater: str) -> dict[int, Label]:
        """One rater's label of each cluster, in the clusters' order; an empty label where there is none."""
        return self._joined(setting for setting in self._latest if setting.rater == rater)

    def effective(self) -> dict[int, Label]:
        """The label that counts for each cluster, in the clusters' order; an empty label where there is none."""
        if self.reference:
            return self.labels(self.reference)
        # A flag tells about the tissue that its rater saw, so it does not join another rater's name.
        settings = sorted((setting for setting in self._latest if setting.value), key=lambda setting: setting.place)
        named_by = {setting.cluster: setting.rater for setting in settings if setting.property == "name"}
        return self._joined(
            setting
            for setting in settings
            if setting.property != "flag" or named_by.get(setting.cluster, setting.rater) == setting.rater
        )

    def _joined(self, settings: Iterable[_Setting]) -> dict[int, Label]:
        labels = {cluster: Label() for cluster in range(self.k)}
        for setting in sorted(settings, key=lambda setting: setting.place):
            values = {setting.property: setting.value}
            labels[setting.cluster] = replace(labels[setting.cluster], time=setting.time, **values)
        return labels

    def history(self, rater: str) -> History:
        """The rater's steps that can be undone and redone."""
        return history_of(self._events, rater=rater)

    def set_again(self, step: Collection[str]) -> list[int]:
        """The clusters of a step (ids of one rater's events) whose same property that rater has set again since."""
        set_here: set[tuple[str, str, int]] = set()
        again: set[int] = set()
        for event in self._standing:
            keys = {(event.rater, event.sets, cluster) for cluster in event.members}
            if event.id in step:
                set_here |= keys
            else:
                again |= {cluster for _, _, cluster in keys & set_here}
        return sorted(again)

    def step_title(self, step: Collection[str]) -> str:
        """What a step did, such as ``name of group 3: bone``, from the ids of its events; empty for no step."""
        events = [event for event in self._events if event.id in step]
        if not events:
            return ""
        clusters = sorted({cluster for event in events for cluster in event.members})
        numbers = ", ".join(map(str, clusters[:8])) + (" and others" if len(clusters) > 8 else "")
        if events[-1].edit.startswith("import-"):
            return f"import of labels for {len(clusters)} groups"
        kind, value = events[-1].kind, events[-1].value or "none"
        if kind == "merge":
            return f"merge of groups {numbers}: {value}"
        return f"{kind} of group{'s' if len(clusters) > 1 else ''} {numbers}: {value}"


def reference_of(events: Sequence[Event]) -> str:
    """The rater who was last chosen as the reference; empty where the latest label by anyone counts."""
    return next((event.value for event in reversed(events) if event.kind == "reference"), "")


def raters_of(events: Sequence[Event]) -> list[str]:
    """Everybody who ever labelled a cluster, in the order in which they began."""
    return list(dict.fromkeys(event.rater for event in events if event.sets))


def read_label_state(run: Path, *, k: int) -> LabelState:
    """The labels of the ``k`` clusters of the run's present clustering, with the raters' synonyms."""
    from histoloom.names.synonyms import canonical_names, read_synonyms  # it writes as the tables do

    synonyms = canonical_names(read_synonyms(run))
    return LabelState(read_events(run), k=k, clustering=clustering_of(run), synonyms=synonyms)


def display_labels(labels: Mapping[int, Label]) -> dict[int, Label]:
    """Labels with a name for each cluster, ``cluster c`` where there is none, and with the colour of its tissue.

    A tissue has one colour: that of its first cluster that has one.
    """
    tissue_colours: dict[str, str] = {}
    for label in labels.values():
        if label.name and label.colour:
            tissue_colours.setdefault(normalised(label.name), label.colour)
    return {
        cluster: replace(
            label,
            name=label.name or default_name(cluster),
            colour=tissue_colours.get(normalised(label.name), label.colour),
        )
        for cluster, label in labels.items()
    }


def tissues_of(labels: Mapping[int, Label]) -> dict[int, tuple[int, ...]]:
    """The clusters of each tissue, rising, by its first one; a cluster without a name is a tissue of its own."""
    by_name: dict[str, list[int]] = {}
    for cluster in sorted(labels):
        by_name.setdefault(normalised(labels[cluster].name) or default_name(cluster), []).append(cluster)
    return {clusters[0]: tuple(clusters) for clusters in by_name.values()}


def flags_of(labels: Mapping[int, Label], *, clusters: Sequence[int]) -> tuple[str, ...]:
    """The flags of a group of clusters: ``artefact``, or ``artefact (only 3)`` where not all of them have it."""
    flags = []
    for flag in sorted({labels[cluster].flag for cluster in clusters} - {""}):
        having = [cluster for cluster in clusters if labels[cluster].flag == flag]
        flags.append(flag if len(having) == len(clusters) else f"{flag} (only {', '.join(map(str, having))})")
    return tuple(flags)


def artefacts_of(events: Sequence[Event], *, clustering: str) -> dict[int, list[int]]:
    """The clusters that are flagged as artefact, for each k that has some: those that mixtures and scores leave out.

    ``events`` are all of a journal, ``clustering`` the fingerprint of the clusters that count.
    """
    found: dict[int, list[int]] = {}
    for k in sorted({event.k for event in events if event.sets}):
        labels = LabelState(events, k=k, clustering=clustering).effective()
        if left_out := sorted({*labels} - {*without_artefacts(labels)}):
            found[k] = left_out
    return found


def without_artefacts(labels: Mapping[int, Label]) -> list[int]:
    """The clusters that show tissue: all but those flagged as artefact; all where every one is flagged so."""
    kept = [cluster for cluster in sorted(labels) if labels[cluster].flag != "artefact"]
    return kept or sorted(labels)


def current_labels(run: Path, *, k: int) -> dict[int, Label]:
    """The label that counts for each cluster of ``k``, in the clusters' order, as ``display_labels`` completes it."""
    return display_labels(read_label_state(run, k=k).effective())


def current_names(run: Path, *, k: int) -> dict[int, str]:
    """The name that counts for each cluster of ``k``, in the clusters' order; ``cluster c`` where there is none."""
    return {cluster: label.name for cluster, label in current_labels(run, k=k).items()}


def clusters_of_tissue(run_or_names: Path | Mapping[int, str], tissue: str, *, k: int) -> list[int]:
    """The clusters of ``k`` that ``tissue`` means: a name, in any case, or a cluster's number.

    Several clusters may share a name; all of them are returned, in rising order. ``UserError`` lists the names that
    exist and suggests the closest.
    """
    names = current_names(run_or_names, k=k) if isinstance(run_or_names, Path) else dict(run_or_names)
    wanted = normalised(tissue)
    clusters = sorted(cluster for cluster, name in names.items() if normalised(name) == wanted)
    if clusters:
        return clusters
    number = NUMBER.fullmatch(wanted)
    if number and int(number[1]) in names:
        return [int(number[1])]

    choices = sorted(set(names.values()) - {default_name(cluster) for cluster in names})
    by_normalised = {normalised(name): name for name in choices}
    near = difflib.get_close_matches(wanted, list(by_normalised), n=1, cutoff=0.5)
    hint = f"did you mean {by_normalised[near[0]]!r}? " if near else ""
    named = f"the names {', '.join(map(repr, choices))} or " if choices else ""
    raise UserError(f"no tissue {tissue!r} at k = {k}; {hint}allowed: {named}a cluster's number from 0 to {k - 1}")
