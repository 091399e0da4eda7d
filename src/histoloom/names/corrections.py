"""Corrections of single patches, ``RUN/corrections.csv``: an expert gives a patch another name than its cluster's."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from histoloom.names.journal import clustering_of
from histoloom.names.table import inert, not_inert
from histoloom.run.directory import disk_errors_explained, write_text

FILE = "corrections.csv"
COLUMNS = ("patch_id", "k", "cluster", "before", "name", "rater", "time", "clustering")
NO_TISSUE = "(no tissue)"
"""What stands for the name of a patch from which an expert took any name."""


def read_corrections(run: Path) -> list[dict[str, str]]:
    """The rows of ``RUN/corrections.csv``, all of them; none where there is no such file."""
    path = run / FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [{key: not_inert(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def current_corrections(run: Path, *, k: int) -> Mapping[str, str]:
    """The name that each corrected patch of the present clusters has at ``k``, by patch id: the latest by any rater."""
    clustering = clustering_of(run)
    rows = [row for row in read_corrections(run) if (row["k"], row["clustering"]) == (str(k), clustering)]
    return {row["patch_id"]: row["name"] or NO_TISSUE for row in sorted(rows, key=lambda row: row["time"])}


def write_corrections(
    run: Path, rows: Sequence[Sequence[object]], *, slide_patches: set[str], k: int, rater: str
) -> None:
    """Put ``rows``, of ``COLUMNS``, in the place of the rater's earlier corrections of the same patches at this k."""
    kept = [
        [row[column] for column in COLUMNS]
        for row in read_corrections(run)
        if not (row["patch_id"] in slide_patches and row["k"] == str(k) and row["rater"] == rater)
    ]
    if not kept and not rows and not (run / FILE).is_file():
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([inert(str(cell)) for cell in row] for row in (*kept, *rows))
    with disk_errors_explained(run):
        write_text(run / FILE, "\ufeff" + text.getvalue())
