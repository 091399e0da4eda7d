"""Which slides there are: files, folders, and the CSVs that go with them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.readers import open_slide
from histoloom.slides.table import TableRow, read_table
from histoloom.store import file_digest, fingerprint

logger = logging.getLogger("histoloom")

# DICOM slides are many files each: they are opened when named, not looked for.
PYRAMID_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")
SUFFIXES = frozenset(PYRAMID_SUFFIXES + FLAT_SUFFIXES)
TABLE_NAME = "slides.csv"

NO_MPP = "does not say its mpp (um/px): give it with --mpp, for example --mpp 0.5, or in a column mpp of a CSV"

_LONGEST_ID = 100
_SHOWN_REASONS = 3


@dataclass(frozen=True)
class _Found:
    """A file (absolute) and its name relative to the path that the user gave; links are followed for ``real``."""

    file: Path
    name: str

    @property
    def real(self) -> Path:
        return self.file.resolve()


def find_slides(config: SlidesConfig) -> list[SlideEntry]:
    """Every slide under the given paths, opened once; those that cannot be used carry the reason as their status.

    Raises ``UserError`` where a path is missing, a table is wrong, or no slide is usable.
    """
    found = _found(config)
    rows = _rows(config)
    entries = [
        _examined(entry, row=rows.get(entry.file.resolve()), config=config) for entry in _named(found, rows=rows)
    ]
    if not any(entry.usable for entry in entries):
        raise UserError(none_usable(entries))
    unlisted = sum(item.real not in rows for item in found)
    if rows and unlisted:
        logger.warning("%d of %d slides are in no table: each counts as a patient of its own", unlisted, len(found))
    return entries


def none_usable(entries: Sequence[SlideEntry]) -> str:
    """One line: why each of the first slides was left out."""
    reasons = [f"{entry.file.name} {entry.status}" for entry in entries[:_SHOWN_REASONS]]
    more = f"; and {len(entries) - _SHOWN_REASONS} more" if len(entries) > _SHOWN_REASONS else ""
    return f"none of the {len(entries)} slides found can be used: {'; '.join(reasons)}{more}"


def inventory_fingerprint(config: SlidesConfig) -> str:
    """A digest of what slides and tables there are: names relative to the given paths, sizes, both ends of each
    file, and the tables' text. It reads little of each file, so a change in the middle of one goes unseen.
    """
    files = sorted(
        (item.name, item.file.stat().st_size, file_digest(item.file)) for item in _found(config) if item.file.is_file()
    )
    return fingerprint({"files": files, "tables": [table.read_bytes().hex() for table in _tables(config)]})


def _found(config: SlidesConfig) -> list[_Found]:
    """Files of the given paths in the order of their names, each once; then those that only a CSV path names."""
    found: dict[Path, _Found] = {}
    for text in config.paths:
        path = Path(text)
        if not path.exists():
            raise UserError(f"{path} does not exist; give files or folders of slides")
        for item in _under(path):
            found.setdefault(item.real, item)
    for file in _rows(config):
        if not file.exists():
            found.setdefault(file, _Found(file, file.name))
    if not found:
        raise UserError(
            f"no slides in {', '.join(config.paths)}; give files or folders with any of {' '.join(sorted(SUFFIXES))}"
        )
    return [item for item in found.values() if item.file.exists()] + [
        item for item in found.values() if not item.file.exists()
    ]


def _under(path: Path) -> list[_Found]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _looks_like_slide(file.relative_to(path)) and file.is_file())
        return [_Found(file.absolute(), file.relative_to(path).as_posix()) for file in files]
    if path.suffix.lower() == ".csv":
        return [_Found(file, file.name) for file in read_table(path) if file.exists()]
    return [_Found(path.absolute(), path.name)]


def _looks_like_slide(path: Path) -> bool:
    """By name: a known suffix, not hidden, and no side file such as NAME.truth.png."""
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden and not path.stem.endswith(".truth")


def _tables(config: SlidesConfig) -> list[Path]:
    """The tables in rising weight: those that lie in given folders, those given as paths, the configured one."""
    paths = [Path(text) for text in config.paths]
    tables = [table for path in paths if path.is_dir() for table in sorted(path.rglob(TABLE_NAME))]
    tables += [path for path in paths if path.suffix.lower() == ".csv" and path.is_file()]
    return tables + ([Path(config.table)] if config.table else [])


def _rows(config: SlidesConfig) -> dict[Path, TableRow]:
    rows: dict[Path, TableRow] = {}
    for table in _tables(config):
        rows |= read_table(table)
    return rows


def _named(found: Sequence[_Found], *, rows: Mapping[Path, TableRow]) -> list[SlideEntry]:
    """Entries with their id, slide and patient; a slide is by default its file's stem, a patient its slide."""
    stems = Counter(item.file.stem for item in found)
    taken: set[str] = set()
    entries = []
    for item in found:
        stem = item.file.stem
        slide_id = _unique_id(stem, taken=taken)
        taken.add(slide_id.lower())
        row = rows.get(item.real, TableRow(None, None, None))
        slide = row.slide or (stem if stems[stem] == 1 else slide_id)
        entries.append(SlideEntry(slide_id, item.file, patient=row.patient or slide, slide=slide))
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
        return entry.left_out(str(error))
    if row is not None and row.mpp is not None:
        mpp, source = row.mpp, "table"
    elif mpp is None and config.mpp is not None:
        mpp, source = config.mpp, "slides.mpp"
    sized = SlideEntry(
        entry.slide_id, entry.file, entry.patient, entry.slide, width=width, height=height, mpp=mpp, mpp_source=source
    )
    return sized if mpp is not None else sized.left_out(NO_MPP)
