"""Which slides there are: files, folders, and the CSVs that go with them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.run.directory import file_digest, fingerprint
from histoloom.slides.entries import SlideEntry, SlideError, one_line
from histoloom.slides.inventory import pseudonyms
from histoloom.slides.inventory.search import Found, Rows, found_slides, table_files
from histoloom.slides.inventory.table import TableRow, read_table
from histoloom.slides.readers.open import open_slide

logger = logging.getLogger("histoloom")

NO_MPP = "does not say its mpp (um/px): give it with --mpp, for example --mpp 0.5, or in a column mpp of a CSV"

_LONGEST_ID = 100
_SHOWN_REASONS = 3
_SHOWN_NAMES = 20


def find_slides(config: SlidesConfig) -> list[SlideEntry]:
    """Every slide under the given paths, opened once; those that cannot be used carry the reason as their status.

    Raises ``UserError`` where a path is missing, a table is wrong, or no slide is usable.
    """
    hidden = pseudonyms.pseudonyms(config)
    config = config if hidden is None else hidden.revealed(config)
    rows = _rows(config)
    _check_columns(config, rows=rows)
    found = found_slides(config, rows=rows)
    entries = _named(found, rows=rows, columns=config.columns)
    if hidden is not None:
        entries = hidden.hide(entries)
    entries = [
        _examined(entry, row=item.row(rows), config=config) if not item.reason else entry.left_out(item.reason)
        for entry, item in zip(entries, found, strict=True)
    ]
    _remark(entries, unlisted=sum(item.row(rows) is None for item in found) if rows else 0)
    if hidden is not None and not all(entry.usable for entry in entries):
        logger.info("which slides these are says %s", hidden.record)
    if not any(entry.usable for entry in entries):
        raise UserError(none_usable(entries))
    return entries if hidden is None else sorted(entries, key=lambda entry: entry.slide_id)


def _remark(entries: Sequence[SlideEntry], *, unlisted: int) -> None:
    """Say what the user must know before the slides are used."""
    if unlisted:
        logger.warning("%d of %d slides are in no table: each counts as a patient of its own", unlisted, len(entries))
    silent = [entry.display_name for entry in entries if entry.status == NO_MPP]
    if silent and any(entry.usable for entry in entries):
        more = f" and {len(silent) - _SHOWN_NAMES} more" if len(silent) > _SHOWN_NAMES else ""
        logger.warning(
            "%d of %d slides do not say their mpp (um/px) and are left out: %s%s; to use them give --mpp, for example "
            "--mpp 0.5, or a CSV with columns file and mpp (--table)",
            len(silent),
            len(entries),
            ", ".join(silent[:_SHOWN_NAMES]),
            more,
        )


def _check_columns(config: SlidesConfig, *, rows: Rows) -> None:
    there = {name for row in rows.values() for name, _ in row.extra}
    absent = [name for name in config.columns or () if name not in there]
    if absent:
        raise UserError(
            f"slides.columns names {absent[0]!r}, which no table has; they have: {', '.join(sorted(there)) or 'none'}"
        )


def none_usable(entries: Sequence[SlideEntry]) -> str:
    """One line: why each of the first slides was left out."""
    reasons = [f"{entry.display_name} {entry.status}" for entry in entries[:_SHOWN_REASONS]]
    more = f"; and {len(entries) - _SHOWN_REASONS} more" if len(entries) > _SHOWN_REASONS else ""
    return f"none of the {len(entries)} slides found can be used: {'; '.join(reasons)}{more}"


def inventory_fingerprint(config: SlidesConfig) -> str:
    """A digest of what slides and tables there are, and of the settings that say how they are taken: names relative
    to the given paths, sizes, both ends of each file, and the tables' text. It reads little of each file, so a change
    in the middle of one goes unseen.
    """
    hidden = pseudonyms.pseudonyms(config)
    config = config if hidden is None else hidden.revealed(config)
    rows = _rows(config)
    files = sorted(_identity(item) for item in found_slides(config, rows=rows) if not item.reason)
    settings = {"mpp": config.mpp, "columns": config.columns, "pseudonyms": None if hidden is None else hidden.key_id}
    given = {name: value for name, value in settings.items() if value is not None}
    tables = [table.read_bytes().hex() for table in table_files(config)]
    return fingerprint({"files": files, "tables": tables} | given)


def _identity(item: Found) -> tuple[object, ...]:
    try:
        digest = (item.name, item.file.stat().st_size, file_digest(item.file))
    except OSError as error:
        return item.name, 0, f"cannot be read: {error.strerror}"
    members = [(member.name, member.stat().st_size) for member in item.members]
    return (*digest, members) if members else digest


def _rows(config: SlidesConfig) -> dict[Path, TableRow]:
    rows: dict[Path, TableRow] = {}
    for table in table_files(config):
        rows |= read_table(table)
    return rows


def _named(found: Sequence[Found], *, rows: Rows, columns: Sequence[str] | None) -> list[SlideEntry]:
    """Entries with their id and what the tables say; a slide is by default its file's stem, a patient its slide."""
    stems = Counter(item.stem for item in found)
    taken: set[str] = set()
    entries = []
    for item in found:
        slide_id = _unique_id(item.stem, taken=taken)
        taken.add(slide_id.lower())
        row = item.row(rows) or TableRow()
        slide = row.slide or (one_line(item.stem) if stems[item.stem] == 1 else slide_id)
        extra = tuple((name, value) for name, value in row.extra if columns is None or name in columns)
        entry = SlideEntry(slide_id, item.file, patient=row.patient or slide, slide=slide)
        entries.append(replace(entry, split=row.split or "", extra=extra))
    return entries


def _unique_id(stem: str, *, taken: set[str]) -> str:
    """``stem`` in letters that every file system takes, unlike any of ``taken`` (lower case)."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[:_LONGEST_ID] or "slide"
    name, number = safe, 1
    while name.lower() in taken:
        number += 1
        name = f"{safe}-{number}"
    return name


def _examined(entry: SlideEntry, *, row: TableRow | None, config: SlidesConfig) -> SlideEntry:
    """The entry with its size and scale, or with the reason why it is left out.

    The scale is the table's, else the file's, else the configured one.
    """
    try:
        with open_slide(entry.file) as slide:
            (width, height), mpp, source = slide.dimensions, slide.mpp, slide.mpp_source
    except SlideError as error:
        return entry.left_out(entry.public_reason(error))
    if row is not None and row.mpp is not None:
        mpp, source = row.mpp, "table"
    elif mpp is None and config.mpp is not None:
        mpp, source = config.mpp, "slides.mpp"
    sized = replace(entry, width=width, height=height, mpp=mpp, mpp_source=source)
    return sized if mpp is not None else sized.left_out(NO_MPP)
