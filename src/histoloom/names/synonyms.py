"""Synonyms, ``RUN/synonyms.csv``: words that raters use for the same tissue, which agreement takes for one name.

A row says that ``name`` means the same as ``means``. Raters edit the table on the page or in a spreadsheet. Synonyms
serve the comparison of raters alone; the names themselves stay as they were given.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from histoloom.errors import UserError
from histoloom.names.journal import locked
from histoloom.names.table import inert, not_inert
from histoloom.names.text import normalised, valid
from histoloom.run.directory import disk_errors_explained, write_text

FILE = "synonyms.csv"
COLUMNS = ("name", "means")
MAX_ROWS = 500


def read_synonyms(run: Path) -> list[tuple[str, str]]:
    """The rows (name, what it means); none where there is no table. ``UserError`` where it cannot be read."""
    path = run / FILE
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return [(not_inert(row["name"] or ""), not_inert(row["means"] or "")) for row in rows]
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: expected a CSV file in UTF-8 with the columns {', '.join(COLUMNS)}") from None


def write_synonyms(run: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Put ``rows`` in the place of the table. ``UserError`` where one is no name, or where they contradict."""
    if len(rows) > MAX_ROWS:
        raise UserError(f"there are {len(rows)} synonyms; at most {MAX_ROWS} are allowed")
    checked = [(valid(name, what="name"), valid(means, what="name that it means")) for name, means in rows]
    meaning_of: dict[str, str] = {}
    for name, means in checked:
        key, meaning = normalised(name), normalised(means)
        if meaning_of.setdefault(key, meaning) != meaning:
            raise UserError(f"{name!r} cannot mean both {meaning_of[key]!r} and {means!r}; leave one row out")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([inert(name), inert(means)] for name, means in checked)
    with locked(run), disk_errors_explained(run):
        write_text(run / FILE, "\ufeff" + text.getvalue())


def canonical_names(rows: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """For each name with synonyms, in the form in which names are compared, one name that stands for all of them.

    "a means b" and "b means c" make one of the three.
    """
    stands_for: dict[str, str] = {}

    def root(name: str) -> str:
        while stands_for.get(name, name) != name:
            name = stands_for[name]
        return name

    for name, means in rows:
        if name.strip() and means.strip():
            stands_for[root(normalised(name))] = root(normalised(means))
    names = {normalised(text) for row in rows for text in row if text.strip()}
    return {name: root(name) for name in names}
