"""What everything else asks of the names: the label of each cluster, and the clusters of a tissue.

Clusters of one name are one tissue: whoever draws from the name draws over all of them.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histoloom.errors import UserError
from histoloom.names.journal import clustering_of, locked, read_events
from histoloom.names.label_state import Label, LabelState
from histoloom.names.text import NUMBER, default_name, plain
from histoloom.run.directory import disk_errors_explained, write_text

NOTES = ("flag", "colour")
"""Columns of a samples' table that repeat what is said of a cluster beside its name."""


@dataclass(frozen=True)
class Naming:
    """One naming that was ever given; ``time`` is ISO 8601 in UTC, ``clusters`` the clustering's fingerprint."""

    time: str
    rater: str
    k: int
    cluster: int
    name: str
    clusters: str = ""


def read_names(run: Path) -> list[Naming]:
    """All namings in the order in which they were given, those taken back too; torn lines are left out."""
    return [
        Naming(event.time, event.rater, event.k, cluster, event.value, event.clusters)
        for event in read_events(run)
        if event.says == "name"
        for cluster in event.members
    ]


def read_book(run: Path, *, k: int) -> LabelState:
    """What the raters said of the ``k`` clusters of the run's present clustering."""
    return LabelState(read_events(run), k=k, clustering=clustering_of(run))


def current_labels(run: Path, *, k: int) -> dict[int, Label]:
    """Name, colour and flag that count for each cluster of ``k``, in the clusters' order.

    The name is ``cluster c`` where there is none; colour and flag are empty where there are none.
    """
    return shown_labels(read_book(run, k=k).counting())


def shown_labels(labels: Mapping[int, Label]) -> dict[int, Label]:
    """Labels with a name for each cluster, and for each the colour that was chosen for its tissue.

    A cluster without a colour of its own takes that of the first cluster of the same name that has one.
    """
    of_tissue: dict[str, str] = {}
    for label in labels.values():
        if label.name and label.colour:
            of_tissue.setdefault(plain(label.name), label.colour)
    return {
        cluster: replace(
            label,
            name=label.name or default_name(cluster),
            colour=label.colour or of_tissue.get(plain(label.name), ""),
        )
        for cluster, label in labels.items()
    }


def current_names(run: Path, *, k: int) -> dict[int, str]:
    """The name that counts for each cluster of ``k``, in the clusters' order; ``cluster c`` where there is none."""
    return {cluster: label.name for cluster, label in current_labels(run, k=k).items()}


def clusters_of(run_or_names: Path | Mapping[int, str], tissue: str, *, k: int) -> list[int]:
    """The clusters of ``k`` that ``tissue`` means: a name, in any case, or a cluster's number.

    Several clusters may share a name; all of them are returned, in rising order. ``UserError`` lists the names that
    there are and suggests the closest.
    """
    names = current_names(run_or_names, k=k) if isinstance(run_or_names, Path) else dict(run_or_names)
    wanted = plain(tissue)
    found = sorted(cluster for cluster, name in names.items() if plain(name) == wanted)
    if found:
        return found
    number = NUMBER.fullmatch(wanted)
    if number and int(number[1]) in names:
        return [int(number[1])]
    raise UserError(_unknown(tissue, names=names, k=k))


def refresh_sample_names(run: Path) -> None:
    """Bring ``tissue``, ``flag`` and ``colour`` in ``RUN/samples/metadata.csv`` up to date, in one step.

    A table without columns for flag and colour gets them with the first flag or colour. Nothing is written where the
    run has no samples yet, or where nothing changed.
    """
    path = run / "samples" / "metadata.csv"
    if not path.is_file():
        return
    with locked(run):
        with path.open(encoding="utf-8", newline="") as file:
            before = file.read()
        reader = csv.DictReader(io.StringIO(before, newline=""))
        columns, rows = list(reader.fieldnames or []), list(reader)
        labels = {k: current_labels(run, k=k) for k in {int(row["k"]) for row in rows}}
        after = _table(columns, rows=rows, labels=labels)
        if after != before:
            with disk_errors_explained(run):
                write_text(path, after)


def _table(
    columns: Sequence[str], *, rows: Sequence[Mapping[str, str]], labels: Mapping[int, Mapping[int, Label]]
) -> str:
    said = [labels[int(row["k"])][int(row["cluster"])] for row in rows]
    wanted = list(columns)
    if any(label.flag or label.colour for label in said):
        missing = [note for note in NOTES if note not in wanted]
        wanted[wanted.index("tissue") + 1 : wanted.index("tissue") + 1] = missing
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, wanted, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row, label in zip(rows, said, strict=True):
        writer.writerow({**row, "tissue": label.name, "flag": label.flag, "colour": label.colour})
    return text.getvalue()


def _unknown(tissue: str, *, names: Mapping[int, str], k: int) -> str:
    choices = sorted(set(names.values()) - {default_name(cluster) for cluster in names})
    by_plain = {plain(name): name for name in choices}
    near = difflib.get_close_matches(plain(tissue), list(by_plain), n=1, cutoff=0.5)
    hint = f"did you mean {by_plain[near[0]]!r}? " if near else ""
    named = f"the names {', '.join(map(repr, choices))} or " if choices else ""
    return f"no tissue {tissue!r} at k = {k}; {hint}allowed: {named}a cluster's number from 0 to {k - 1}"
