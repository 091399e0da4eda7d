"""The CSV that gives what files do not say: patient, slide, mpp, split, and any further columns of the user."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from histoloom.config import MPP_LIMITS
from histoloom.errors import SlidesAbsent, UserError
from histoloom.slides.entries import one_line

COLUMNS = ("file", "patient", "slide", "mpp", "split")
SPLITS = ("train", "holdout")

Split = Literal["train", "holdout"]

_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TableRow:
    """A table's values for a file; None where a cell is empty.

    ``mpp`` is um/px; ``extra`` are the further columns; ``name`` is the file's name as the table spells it.
    """

    patient: str | None = None
    slide: str | None = None
    mpp: float | None = None
    split: Split | None = None
    extra: tuple[tuple[str, str | None], ...] = ()
    name: str = field(default="", compare=False)


def read_table(path: Path) -> dict[Path, TableRow]:
    """The rows of a CSV by absolute file (or folder); files are relative to the CSV. Raises ``UserError``."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than any table of slides; give a CSV with a column file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SlidesAbsent(f"{path} does not exist; give a CSV with a column file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV ({error})") from error

    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    rows: dict[Path, TableRow] = {}
    try:
        columns = _column_names(next(reader, []), path=path)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            place = f"{path}, line {reader.line_num}"
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise UserError(f"{place}: has {len(cells)} cells under {len(columns)} columns; quote the commas")
            values = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name}
            file, row = _row(values, folder=path.parent, place=place)
            if rows.setdefault(file, row) != row:
                raise UserError(f"{place}: {one_line(values['file'])} is listed twice, with different values")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not CSV ({error}); correct it") from error
    return rows


def joined_rows(
    rows: Mapping[Path, TableRow], *, table: Path, slides: Mapping[Path, Sequence[Path]]
) -> dict[Path, TableRow]:
    """``rows`` of ``table`` by the file of their slide. ``slides``: the places that a table may name, by file.

    Where no file has a row's name, the row is for the one slide whose path ends with it. Case, the form of Unicode
    letters and the direction of slashes do not count, and the suffix may be missing. Raises ``UserError`` where no row
    fits a slide, or two rows with different values fit the same one.
    """
    places = {place for of_slide in slides.values() for place in of_slide}
    by_name: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for real, of_slide in slides.items():
        for place in of_slide:
            for spelled in {_plain(str(place)), _plain(str(place.with_suffix("")))}:
                by_name[spelled.rpartition("/")[2]].append((spelled, real))

    fits = 0
    result: dict[Path, TableRow] = {}
    for file, row in rows.items():
        exact = file in places or (file.is_dir() and any(real.is_relative_to(file) for real in slides))
        target = file
        if not exact and not file.exists():
            end = "/" + _plain(os.path.normpath(row.name.replace("\\", "/"))).lstrip("/")
            candidates = by_name[end.rpartition("/")[2]]
            matches = {real for spelled, real in candidates if spelled.endswith(end)}
            exact = len(matches) == 1
            target = matches.pop() if exact else file
        fits += exact
        if result.setdefault(target, row) != row:
            raise UserError(f"{table}: {one_line(row.name)} and {one_line(result[target].name)} both name {target}")
    if rows and not fits:
        first = one_line(next(iter(rows.values())).name)
        raise UserError(
            f"{table} fits no slide: none of its {len(rows)} rows names one of the {len(slides)} slides (the first row "
            f"names {first}); write names relative to {table.parent}, or the end of each slide's path"
        )
    return result


def _plain(name: str) -> str:
    """A path as it is compared: without case, in one form of Unicode, with one kind of slash."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _column_names(header: list[str], *, path: Path) -> list[str]:
    """Names of the columns; the known ones in lower case."""
    names = [one_line(name) for name in header]
    names = [name.lower() if name.lower() in COLUMNS else name for name in names]
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice; rename one")
    if "file" not in names:
        raise UserError(f"{path} has no column file (it has: {', '.join(names) or 'nothing'}); add one")
    return names


def _row(values: dict[str, str], *, folder: Path, place: str) -> tuple[Path, TableRow]:
    """The absolute file and the values of a row; ``place`` names its line in messages."""
    name = values.get("file", "")
    if not name:
        raise UserError(f"{place}: the cell in column file is empty")
    try:
        file = (folder / name).resolve()
        file.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{place}: {one_line(name)!r} is not the name of a file ({error})") from error

    mpp: float | None = None
    if text := values.get("mpp", ""):
        low, high = MPP_LIMITS
        try:
            mpp = float(text)
        except ValueError:
            mpp = 0.0
        if not low <= mpp <= high:
            raise UserError(f"{place}: mpp must be a number of um/px from {low:g} to {high:g}, got {one_line(text)!r}")

    split = values.get("split", "")
    if split and split.lower() not in SPLITS:
        raise UserError(f"{place}: split must be train or holdout, or empty, got {one_line(split)!r}")

    return file, TableRow(
        patient=one_line(values.get("patient", "")) or None,
        slide=one_line(values.get("slide", "")) or None,
        mpp=mpp,
        split=cast("Split", split.lower()) if split else None,
        extra=tuple((column, cell or None) for column, cell in values.items() if column not in COLUMNS),
        name=name,
    )
