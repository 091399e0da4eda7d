"""The CSV that says what files do not: patient, slide, mpp."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from histoloom.errors import UserError

COLUMNS = ("file", "patient", "slide", "mpp")


@dataclass(frozen=True)
class TableRow:
    """What a table says of a file; None where it says nothing. ``mpp`` is um/px."""

    patient: str | None
    slide: str | None
    mpp: float | None


def read_table(path: Path) -> dict[Path, TableRow]:
    """The rows of a CSV by absolute file; files are relative to the CSV, further columns are ignored."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give a CSV with a column file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV ({error})") from error
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    columns = [name.strip().lower() for name in reader.fieldnames or []]
    if "file" not in columns:
        raise UserError(f"{path} has no column file (it has: {', '.join(columns) or 'nothing'}); add one")
    reader.fieldnames = columns
    rows: dict[Path, TableRow] = {}
    for cells in reader:
        _add(rows, cells, path=path, line=reader.line_num)
    return rows


def _add(rows: dict[Path, TableRow], cells: dict[str, str | None], *, path: Path, line: int) -> None:
    values = {name: (cells.get(name) or "").strip() for name in COLUMNS}
    if not values["file"]:
        raise UserError(f"{path}, line {line}: the cell in column file is empty")
    file = (path.parent / values["file"]).resolve()
    row = TableRow(values["patient"] or None, values["slide"] or None, _mpp(values["mpp"], path=path, line=line))
    if rows.setdefault(file, row) != row:
        raise UserError(f"{path}, line {line}: {values['file']} is listed twice, with different values")


def _mpp(text: str, *, path: Path, line: int) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{path}, line {line}: mpp must be a number of um/px above 0, got {text!r}")
    return value
