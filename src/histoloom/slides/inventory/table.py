"""The CSV that says what files do not: patient, slide, mpp, split, and whatever else the user wants beside them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from histoloom.config import MPP_LIMITS
from histoloom.errors import UserError
from histoloom.slides.entries import one_line

COLUMNS = ("file", "patient", "slide", "mpp", "split")
SPLITS = ("train", "holdout")

Split = Literal["train", "holdout"]
Cells = Mapping[str, str]

_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TableRow:
    """What a table says of a file; None where it says nothing. ``mpp`` is um/px; ``extra`` are the further columns."""

    patient: str | None = None
    slide: str | None = None
    mpp: float | None = None
    split: Split | None = None
    extra: tuple[tuple[str, str | None], ...] = ()


def read_table(path: Path) -> dict[Path, TableRow]:
    """The rows of a CSV by absolute file (or folder); files are relative to the CSV. Raises ``UserError``."""
    text = _text(path)
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    rows: dict[Path, TableRow] = {}
    try:
        columns = _columns(next(reader, []), path=path)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                _add(rows, _cells(cells, columns=columns, path=path, line=reader.line_num), path, line=reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not CSV ({error}); correct it") from error
    return rows


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is larger than any table of slides; give a CSV with a column file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give a CSV with a column file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV ({error})") from error


def _columns(header: list[str], *, path: Path) -> list[str]:
    """Names of the columns; the known ones in lower case."""
    names = [one_line(name) for name in header]
    names = [name.lower() if name.lower() in COLUMNS else name for name in names]
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice; rename one")
    if "file" not in names:
        raise UserError(f"{path} has no column file (it has: {', '.join(names) or 'nothing'}); add one")
    return names


def _cells(cells: list[str], *, columns: list[str], path: Path, line: int) -> Cells:
    if any(cell.strip() for cell in cells[len(columns) :]):
        raise UserError(f"{path}, line {line}: has {len(cells)} cells under {len(columns)} columns; quote the commas")
    return {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name}


def _add(rows: dict[Path, TableRow], cells: Cells, path: Path, *, line: int) -> None:
    name = cells.get("file", "")
    if not name:
        raise UserError(f"{path}, line {line}: the cell in column file is empty")
    try:
        file = (path.parent / name).resolve()
        file.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}, line {line}: {one_line(name)!r} is not the name of a file ({error})") from error
    row = TableRow(
        patient=one_line(cells.get("patient", "")) or None,
        slide=one_line(cells.get("slide", "")) or None,
        mpp=_mpp(cells.get("mpp", ""), path=path, line=line),
        split=_split(cells.get("split", ""), path=path, line=line),
        extra=tuple((column, cell or None) for column, cell in cells.items() if column not in COLUMNS),
    )
    if rows.setdefault(file, row) != row:
        raise UserError(f"{path}, line {line}: {one_line(name)} is listed twice, with different values")


def _mpp(text: str, *, path: Path, line: int) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    low, high = MPP_LIMITS
    if not low <= value <= high:
        raise UserError(
            f"{path}, line {line}: mpp must be a number of um/px from {low:g} to {high:g}, got {one_line(text)!r}"
        )
    return value


def _split(text: str, *, path: Path, line: int) -> Split | None:
    if text and text.lower() not in SPLITS:
        raise UserError(f"{path}, line {line}: split must be train or holdout, or empty, got {one_line(text)!r}")
    return cast("Split", text.lower()) if text else None
