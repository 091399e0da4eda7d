"""Names as a table for spreadsheets: CSV out and in.

*Out*: a row for each cluster of each rater, in UTF-8 with a byte order mark (spreadsheets take it for another encoding
without). Cells that a spreadsheet would compute get an apostrophe in front. *In*: what Histoloom wrote comes back as it
was; tables of other programs may use commas, semicolons or tabs, any line ends, upper case in the header, columns of
their own. Everything is checked before anything is written. An empty cell says nothing: no name is erased by a table.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from histoloom.errors import UserError
from histoloom.names.edits import label_events
from histoloom.names.journal import Event, append, clustering_of, locked, read_events
from histoloom.names.label_state import Label, LabelState, raters_of
from histoloom.names.text import valid_time
from histoloom.run.directory import fingerprint

COLUMNS = ("k", "cluster", "name", "colour", "flag", "rater", "time", "patches", "clustering")
SAID = ("name", "colour", "flag")
MAX_BYTES, MAX_ROWS, MAX_ERRORS = 4 * 2**20, 20_000, 20

Sizes = Mapping[int, Sequence[int]]
"""Patches of each cluster, for each k of the sweep."""

_COMPUTED = ("=", "+", "-", "@", "\t", "\r")
_WHOLE = re.compile(r"(\d{1,9})(?:\.0+)?")


class TableError(UserError):
    """A table that cannot be taken; ``lines`` are its errors, one a row."""

    def __init__(self, lines: Sequence[str]) -> None:
        shown = list(lines[:MAX_ERRORS])
        self.lines = [*shown, *([f"and {len(lines) - MAX_ERRORS} more"] if len(lines) > MAX_ERRORS else [])]
        super().__init__("; ".join(self.lines))


@dataclass(frozen=True)
class Taken:
    """What an import did: rows that said something, rows that were empty, and properties that changed."""

    rows: int
    empty: int
    changes: int


def export_table(run: Path, *, sizes: Sizes, rater: str | None = None, k: int | None = None) -> str:
    """The names of one rater, or of all, at one k, or at all where they said something.

    Of each rater and k, every cluster has a row, so that the table can be filled in. A rater who said nothing, or a run
    without any names, gives such a form.
    """
    events, clustering = read_events(run), clustering_of(run)
    books = {
        count: LabelState(events, k=count, clustering=clustering) for count in ([k] if k is not None else sorted(sizes))
    }
    raters = [rater] if rater is not None else sorted(raters_of(events))
    wanted = [(count, who) for count, book in books.items() for who in raters if who in book.raters]
    form = [(count, rater or "") for count in books]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for count, who in wanted or form:
        for cluster, label in books[count].labels(who).items():
            writer.writerow(_row(label, where=(count, cluster), rater=who, more=(sizes[count][cluster], clustering)))
    return "\ufeff" + text.getvalue()


def import_table(run: Path, data: bytes, *, sizes: Sizes, rater: str | None = None, force: bool = False) -> Taken:
    """Take over the names in a table; those of its own column, or ``rater``, are the raters.

    The table must be of the run's present clustering, by its column ``clustering`` or else by the numbers of patches;
    ``force`` leaves this out. Raises ``TableError`` with one line for each error, and writes nothing then.
    """
    rows = list(read_rows(data))
    with locked(run):
        clustering = clustering_of(run)
        errors = [] if force else _foreign(rows, clustering=clustering, sizes=sizes)
        if errors:
            raise TableError(errors)
        events, said = _events(rows, sizes=sizes, rater=rater, edit=f"import-{fingerprint(data.hex())}")
        known = read_events(run)
        books = {k: LabelState(known, k=k, clustering=clustering) for k in {event.k for event in events}}
        news = [event for event in events if not _is_said(event, books[event.k])]
        if news:
            append(run, news)
    return Taken(rows=said, empty=len(rows) - said, changes=len(news))


@dataclass(frozen=True)
class Row:
    """A row of a table: its number in the file (the header's is 1), and its cells by lower-case column."""

    number: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_rows(data: bytes) -> Iterator[Row]:
    """The rows of a CSV file, blank ones left out; ``TableError`` where it is none or lacks a column."""
    text = _decoded(data)
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=(.)"?\r?', first)
    body, offset = (rest, 1) if told else (text, 0)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=told[1] if told else _delimiter(body), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            number = offset + reader.line_num
            if header is None:
                header = _header(cells)
            elif any(cell.strip() for cell in cells):
                if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                    raise TableError([f"row {number}: {len(cells)} cells under {len(header)} columns"])
                if number > MAX_ROWS:
                    raise TableError([f"more than {MAX_ROWS:,} rows; give the table in parts"])
                yield Row(number, {name: _bare(cell) for name, cell in zip(header, cells, strict=False)})
    except csv.Error as error:
        raise TableError([f"row {offset + reader.line_num}: not CSV, {error}"]) from None
    if header is None:
        raise TableError(["the table is empty; its first row names the columns"])


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise TableError([f"the table has {len(data):,} bytes; at most {MAX_BYTES:,} are taken"])
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise TableError(["the table is not in UTF-8; save it as CSV UTF-8"]) from None


def _delimiter(text: str) -> str:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _header(cells: Sequence[str]) -> list[str]:
    names = [{"color": "colour"}.get(name, name) for name in (cell.strip().lower() for cell in cells)]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    missing = [name for name in ("k", "cluster") if name not in names]
    if twice:
        raise TableError([f"row 1: the column {twice[0]!r} is there twice"])
    if missing or not set(SAID) & set(names):
        raise TableError([f"row 1: columns wanted are {', '.join(COLUMNS)}; got {', '.join(map(repr, names))[:200]}"])
    return names


def _row(label: Label, *, where: tuple[int, int], rater: str, more: tuple[int, str]) -> list[str]:
    cells = [*where, label.name, label.colour, label.flag, rater, "" if label.empty else label.time, *more]
    return [inert(str(cell)) for cell in cells]


def inert(cell: str) -> str:
    """A cell that no spreadsheet computes: an apostrophe stands before what would begin a formula."""
    return f"'{cell}" if cell.startswith((*_COMPUTED, "'")) else cell


def _bare(cell: str) -> str:
    """The inverse of ``inert``, without spaces around it."""
    cell = cell.strip(" ")
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith((*_COMPUTED, "'")) else cell


def _foreign(rows: Sequence[Row], *, clustering: str, sizes: Sizes) -> list[str]:
    """Why the table is of another clustering; empty where it is of this one."""
    reasons = ((row.number, _other_clustering(row, clustering=clustering, sizes=sizes)) for row in rows)
    return [f"row {number}: {reason}; force takes it all the same" for number, reason in reasons if reason]


def _other_clustering(row: Row, *, clustering: str, sizes: Sizes) -> str:
    said = row["clustering"]
    if said:
        reason = f"of the clustering {said[:40]!r}, where numbers mean other tissue; the run's is {clustering!r}"
        return "" if said == clustering else reason
    if not row["patches"]:
        return "neither 'clustering' nor 'patches' says which clustering this is of"
    k, cluster = _whole(row["k"]), _whole(row["cluster"])
    if k is None or cluster is None or k not in sizes or cluster >= k or _whole(row["patches"]) == sizes[k][cluster]:
        return ""
    return f"{row['patches'][:40]} patches in the table, {sizes[k][cluster]} in the run: it is of another clustering"


def _events(rows: Sequence[Row], *, sizes: Sizes, rater: str | None, edit: str) -> tuple[list[Event], int]:
    """What the rows say, checked, and how many of them say something; ``TableError`` lists all errors."""
    errors: list[str] = []
    events: list[Event] = []
    seen: dict[tuple[int, int, str], int] = {}
    for row in rows:
        try:
            found = _row_events(row, sizes=sizes, rater=rater, edit=edit)
        except UserError as error:
            errors.append(f"row {row.number}: {error}")
            continue
        for place in {(event.k, event.members[0], event.rater) for event in found}:
            if place in seen:
                errors.append(f"row {row.number}: cluster {place[1]} of k = {place[0]} is in row {seen[place]} already")
            seen.setdefault(place, row.number)
        events += found
    if errors:
        raise TableError(errors)
    return events, len(seen)


def _row_events(row: Row, *, sizes: Sizes, rater: str | None, edit: str) -> list[Event]:
    k, cluster = _whole(row["k"]), _whole(row["cluster"])
    if k is None or k not in sizes:
        raise UserError(f"k is {row['k'][:40]!r}; allowed: {', '.join(map(str, sorted(sizes)))}")
    if cluster is None or cluster >= k:
        raise UserError(f"the cluster is {row['cluster'][:40]!r}; allowed: 0 to {k - 1}")
    said = {column: row[column] or None for column in SAID}
    if set(said.values()) == {None}:
        return []
    who = rater if rater is not None else row["rater"]
    if not who:
        raise UserError("no rater; fill in the column 'rater', or say who it was (--rater)")
    return label_events(cluster=cluster, k=k, rater=who, said=said, edit=edit, given=valid_time(row["time"]))


def _whole(cell: str) -> int | None:
    found = _WHOLE.fullmatch(cell.strip())
    return int(found[1]) if found else None


def _is_said(event: Event, book: LabelState) -> bool:
    """Whether the rater says this already."""
    return bool(getattr(book.labels(event.rater)[event.members[0]], event.says) == event.value)
