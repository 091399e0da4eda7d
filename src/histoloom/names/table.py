"""Names as tables: CSV out and in for spreadsheets, and the columns of the samples' table that repeat them.

*Out*: a row for each cluster of each rater, in UTF-8 with a byte order mark (without it, spreadsheets assume another
encoding). A cell that a spreadsheet would compute gets an apostrophe in front. *In*: what Histoloom wrote comes back
unchanged; tables of other programs may use commas, semicolons or tabs, any line ends, upper case in the header, and
columns of their own. Everything is checked before anything is written. An empty cell sets nothing: no import erases a
name.
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
from histoloom.names.label_state import LabelState, current_labels, raters_of
from histoloom.names.text import valid_time
from histoloom.run.directory import disk_errors_explained, fingerprint, write_text

COLUMNS = ("k", "cluster", "name", "colour", "flag", "rater", "time", "patches", "clustering")
PROPERTIES = ("name", "colour", "flag")
MAX_BYTES, MAX_ROWS, MAX_ERRORS = 4 * 2**20, 20_000, 20

Sizes = Mapping[int, Sequence[int]]
"""Patches of each cluster, for each k of the sweep."""

_COMPUTED = ("=", "+", "-", "@", "\t", "\r")


class TableError(UserError):
    """A table that cannot be imported; ``lines`` are its errors, each said once with the rows that have it."""

    def __init__(self, lines: Sequence[str]) -> None:
        shown = list(lines[:MAX_ERRORS])
        self.lines = [*shown, *([f"and {len(lines) - MAX_ERRORS} more"] if len(lines) > MAX_ERRORS else [])]
        super().__init__("; ".join(self.lines))

    @staticmethod
    def of_rows(errors: Sequence[tuple[int, str]]) -> TableError:
        """The error of rows, from (row number, reason): rows with the same reason share a line."""
        rows_by_reason: dict[str, list[int]] = {}
        for number, reason in errors:
            rows_by_reason.setdefault(reason, []).append(number)
        return TableError(
            [f"row{'s' if len(rows) > 1 else ''} {_ranges(rows)}: {reason}" for reason, rows in rows_by_reason.items()]
        )


@dataclass(frozen=True)
class ImportResult:
    """What an import did: rows that set something, rows that were empty, and properties that changed."""

    rows: int
    empty: int
    changes: int


def export_table(run: Path, *, sizes: Sizes, rater: str | None = None, k: int | None = None) -> str:
    """The labels of one rater, or of all, at one k, or at every k where they set something.

    Of each rater and k, every cluster has a row, so that the table can be filled in. A rater without labels, or a run
    without any, gives an empty form.
    """
    events, clustering = read_events(run), clustering_of(run)
    states = {
        count: LabelState(events, k=count, clustering=clustering) for count in ([k] if k is not None else sorted(sizes))
    }
    raters = [rater] if rater is not None else sorted(raters_of(events))
    filled = [(count, who) for count, state in states.items() for who in raters if who in state.raters]
    form = [(count, rater or "") for count in states]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for count, who in filled or form:
        for cluster, label in states[count].labels(who).items():
            time = "" if label.empty else label.time
            cells = [count, cluster, label.name, label.colour, label.flag, who, time, sizes[count][cluster], clustering]
            writer.writerow([inert(str(cell)) for cell in cells])
    return "\ufeff" + text.getvalue()


def import_table(
    run: Path, data: bytes, *, sizes: Sizes, rater: str | None = None, force: bool = False
) -> ImportResult:
    """Append the labels in a table that differ from the present ones; raters are those of its column, or ``rater``.

    The table must be of the run's present clustering, by its column ``clustering`` or else by the numbers of patches;
    ``force`` omits this check. Raises ``TableError`` with one line for each error, and writes nothing then.
    """
    rows = list(read_rows(data))
    with locked(run):
        clustering = clustering_of(run)
        if not force:
            reasons = [(row.number, _other_clustering(row, clustering=clustering, sizes=sizes)) for row in rows]
            errors = [(number, f"{reason}; force imports it anyway") for number, reason in reasons if reason]
            if errors:
                raise TableError.of_rows(errors)

        events, filled = _events(rows, sizes=sizes, rater=rater, edit=f"import-{fingerprint(data.hex())}")
        known = read_events(run)
        states = {k: LabelState(known, k=k, clustering=clustering) for k in {event.k for event in events}}
        changes = [
            event
            for event in events
            if getattr(states[event.k].labels(event.rater)[event.members[0]], event.sets) != event.value
        ]
        if changes:
            append(run, changes)
    return ImportResult(rows=filled, empty=len(rows) - filled, changes=len(changes))


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
        by_k = {k: current_labels(run, k=k) for k in {int(row["k"]) for row in rows}}
        labels = [by_k[int(row["k"])][int(row["cluster"])] for row in rows]
        if any(label.flag or label.colour for label in labels):
            place = columns.index("tissue") + 1
            columns[place:place] = [column for column in ("flag", "colour") if column not in columns]

        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for row, label in zip(rows, labels, strict=True):
            writer.writerow({**row, "tissue": label.name, "flag": label.flag, "colour": label.colour})
        if text.getvalue() != before:
            with disk_errors_explained(run):
                write_text(path, text.getvalue())


@dataclass(frozen=True)
class Row:
    """A row of a table: its number in the file (the header's is 1), and its cells by lower-case column."""

    number: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_rows(data: bytes) -> Iterator[Row]:
    """The rows of a CSV file, blank ones left out; ``TableError`` where it is none or lacks a column."""
    if len(data) > MAX_BYTES:
        raise TableError([f"the table has {len(data):,} bytes; at most {MAX_BYTES:,} are allowed"])
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise TableError(["the table is not in UTF-8; save it as CSV UTF-8"]) from None

    # Spreadsheets may name the delimiter in a line of its own, before the header.
    first, _, rest = text.partition("\n")
    named = re.fullmatch(r'"?sep=(.)"?\r?', first)
    body, offset = (rest, 1) if named else (text, 0)
    delimiter = named[1] if named else max(",;\t", key=body.lstrip("\r\n").split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, strict=True)
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
                yield Row(number, {name: not_inert(cell) for name, cell in zip(header, cells, strict=False)})
    except csv.Error as error:
        raise TableError([f"row {offset + reader.line_num}: not CSV, {error}"]) from None
    if header is None:
        raise TableError(["the table is empty; its first row names the columns"])


def _header(cells: Sequence[str]) -> list[str]:
    names = [{"color": "colour"}.get(name, name) for name in (cell.strip().lower() for cell in cells)]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise TableError([f"row 1: the column {twice[0]!r} is there twice"])
    if not {"k", "cluster"} <= set(names) or not set(PROPERTIES) & set(names):
        raise TableError([f"row 1: expected the columns {', '.join(COLUMNS)}; got {', '.join(map(repr, names))[:200]}"])
    return names


def inert(cell: str) -> str:
    """A cell that no spreadsheet computes: an apostrophe stands before what would begin a formula."""
    return f"'{cell}" if cell.startswith((*_COMPUTED, "'")) else cell


def not_inert(cell: str) -> str:
    """The inverse of ``inert``, without spaces at the ends."""
    cell = cell.strip(" ")
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith((*_COMPUTED, "'")) else cell


def _other_clustering(row: Row, *, clustering: str, sizes: Sizes) -> str:
    """Why the row is of another clustering; empty where it is of this one."""
    if stated := row["clustering"]:
        reason = f"of the clustering {stated[:40]!r}, where numbers mean other tissue; the run's is {clustering!r}"
        return "" if stated == clustering else reason
    if not row["patches"]:
        return "neither 'clustering' nor 'patches' says which clustering this is of"
    k, cluster = _whole(row["k"]), _whole(row["cluster"])
    if k is None or cluster is None or k not in sizes or cluster >= k or _whole(row["patches"]) == sizes[k][cluster]:
        return ""
    return "the numbers of patches are not those of the run, so it is of another clustering"


def _events(rows: Sequence[Row], *, sizes: Sizes, rater: str | None, edit: str) -> tuple[list[Event], int]:
    """What the rows set, checked, and how many of them set something; ``TableError`` lists all errors."""
    errors: list[tuple[int, str]] = []
    events: list[Event] = []
    seen: dict[tuple[int, int, str], int] = {}
    for row in rows:
        try:
            row_events = _row_events(row, sizes=sizes, rater=rater, edit=edit)
        except UserError as error:
            errors.append((row.number, str(error)))
            continue
        for place in {(event.k, event.members[0], event.rater) for event in row_events}:
            if place in seen:
                errors.append((row.number, f"cluster {place[1]} of k = {place[0]} is in row {seen[place]} already"))
            seen.setdefault(place, row.number)
        events += row_events
    if errors:
        raise TableError.of_rows(errors)
    return events, len(seen)


def _row_events(row: Row, *, sizes: Sizes, rater: str | None, edit: str) -> list[Event]:
    k, cluster = _whole(row["k"]), _whole(row["cluster"])
    if k is None or k not in sizes:
        raise UserError(f"k is {row['k'][:40]!r}; allowed: {', '.join(map(str, sorted(sizes)))}")
    if cluster is None or cluster >= k:
        raise UserError(f"the cluster is {row['cluster'][:40]!r}; allowed: 0 to {k - 1}")
    label = {name: row[name] or None for name in PROPERTIES}
    if set(label.values()) == {None}:
        return []
    who = rater if rater is not None else row["rater"]
    if not who:
        raise UserError("no rater; fill in the column 'rater', or name the rater with --rater")
    return label_events(cluster=cluster, k=k, rater=who, label=label, edit=edit, imported_time=valid_time(row["time"]))


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in words, such as ``2 to 9, 12``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _whole(cell: str) -> int | None:
    """A whole number, also as spreadsheets write it (3.0); None for anything else."""
    match = re.fullmatch(r"(\d{1,9})(?:\.0+)?", cell.strip())
    return int(match[1]) if match else None
