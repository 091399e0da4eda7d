"""The slides of a run: files, folders, and the CSVs that go with them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.run.directory import file_digest, fingerprint
from histoloom.slides.entries import SlideEntry, SlideError, is_unicode, one_line
from histoloom.slides.inventory import dicom
from histoloom.slides.inventory.pseudonyms import open_pseudonyms
from histoloom.slides.inventory.table import TableRow, read_table
from histoloom.slides.readers.open import open_slide

logger = logging.getLogger("histoloom")

PYRAMID_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")
SUFFIXES = frozenset(PYRAMID_SUFFIXES + FLAT_SUFFIXES + dicom.SUFFIXES)
TABLE_NAME = "slides.csv"

# Reasons why a slide is left out.
NO_MPP = "does not say its mpp (um/px): give it with --mpp, for example --mpp 0.5, or in a column mpp of a CSV"
LINK_OUT = (
    "is a link to a place outside the given paths; give that place too, or allow such links: "
    "--set slides.follow_links=true"
)
LINK_NOWHERE = "is a link that leads to no file"
NOT_UNICODE = "has a name that is not Unicode; rename the file"
NOT_REGULAR = "is not a regular file"
ABSENT = "the file does not exist"

_LONGEST_ID = 100
_REASONS_IN_MESSAGE = 3
_NAMES_IN_MESSAGE = 20

Rows = Mapping[Path, TableRow]
"""The tables' rows by the absolute path of a file or folder."""


@dataclass(frozen=True)
class SlideFile:
    """A slide's file (absolute) and its name relative to the path that the user gave.

    ``real`` has links followed. ``stem`` is the slide's name by default; ``members`` are the other files that it is
    made of; ``reason`` says why it must not be opened, empty where it may.
    """

    file: Path
    name: str
    real: Path
    stem: str
    members: tuple[Path, ...] = ()
    reason: str = ""

    def row(self, rows: Rows) -> TableRow | None:
        """Its row of the tables: of its file, else of one of its members or of the folder of a DICOM slide."""
        places = [self.real, *(member.resolve() for member in self.members)]
        if dicom.is_dicom_name(self.file):
            places.append(self.real.parent)
        return next((rows[place] for place in places if place in rows), None)


def find_slides(config: SlidesConfig) -> list[SlideEntry]:
    """Every slide under the configured paths, opened once; the status of those that cannot be used is the reason.

    Raises ``UserError`` where a path is missing, a table is wrong, or no slide is usable.
    """
    pseudonyms = open_pseudonyms(config)
    config = config if pseudonyms is None else pseudonyms.reveal(config)
    rows = _table_rows(config)
    table_columns = {name for row in rows.values() for name, _ in row.extra}
    unknown = [name for name in config.columns or () if name not in table_columns]
    if unknown:
        raise UserError(
            f"slides.columns names {unknown[0]!r}, which no table has; they have: "
            f"{', '.join(sorted(table_columns)) or 'none'}"
        )

    files = find_files(config, rows=rows)
    entries = _entries(files, rows=rows, columns=config.columns)
    if pseudonyms is not None:
        entries = pseudonyms.hide(entries)
    entries = [
        entry.left_out(file.reason) if file.reason else _examined(entry, row=file.row(rows), config=config)
        for entry, file in zip(entries, files, strict=True)
    ]

    # What the user must know before the slides are used.
    unlisted = sum(file.row(rows) is None for file in files) if rows else 0
    if unlisted:
        logger.warning("%d of %d slides are in no table: each counts as a patient of its own", unlisted, len(entries))
    no_mpp = [entry.display_name for entry in entries if entry.status == NO_MPP]
    usable = any(entry.usable for entry in entries)
    if no_mpp and usable:
        more = f" and {len(no_mpp) - _NAMES_IN_MESSAGE} more" if len(no_mpp) > _NAMES_IN_MESSAGE else ""
        logger.warning(
            "%d of %d slides do not say their mpp (um/px) and are left out: %s%s; to use them give --mpp, for example "
            "--mpp 0.5, or a CSV with columns file and mpp (--table)",
            len(no_mpp),
            len(entries),
            ", ".join(no_mpp[:_NAMES_IN_MESSAGE]),
            more,
        )
    if pseudonyms is not None and not all(entry.usable for entry in entries):
        logger.info("the names of these slides are in %s", pseudonyms.record)
    if not usable:
        raise UserError(none_usable(entries))
    return entries if pseudonyms is None else sorted(entries, key=lambda entry: entry.slide_id)


def none_usable(entries: Sequence[SlideEntry]) -> str:
    """One line: why each of the first slides is left out."""
    reasons = [f"{entry.display_name} {entry.status}" for entry in entries[:_REASONS_IN_MESSAGE]]
    more = f"; and {len(entries) - _REASONS_IN_MESSAGE} more" if len(entries) > _REASONS_IN_MESSAGE else ""
    return f"none of the {len(entries)} slides found can be used: {'; '.join(reasons)}{more}"


def inventory_fingerprint(config: SlidesConfig) -> str:
    """A digest of the slides, the tables, and the settings that say how they are used.

    Of each slide its name relative to the given path, its size, and both ends of its file; of each table the text. A
    change in the middle of a slide's file goes unnoticed, so that little of each file is read.
    """
    pseudonyms = open_pseudonyms(config)
    config = config if pseudonyms is None else pseudonyms.reveal(config)
    files: list[tuple[object, ...]] = []
    for item in find_files(config, rows=_table_rows(config)):
        if item.reason:
            continue
        try:
            identity: tuple[object, ...] = (item.name, item.file.stat().st_size, file_digest(item.file))
        except OSError as error:
            files.append((item.name, 0, f"cannot be read: {error.strerror}"))
            continue
        members = [(member.name, member.stat().st_size) for member in item.members]
        files.append((*identity, members) if members else identity)
    settings = {
        "mpp": config.mpp,
        "columns": config.columns,
        "pseudonyms": None if pseudonyms is None else pseudonyms.key_id,
    }
    content: dict[str, object] = {
        "files": sorted(files),
        "tables": [table.read_bytes().hex() for table in table_files(config)],
    }
    return fingerprint(content | {name: value for name, value in settings.items() if value is not None})


def table_files(config: SlidesConfig) -> list[Path]:
    """The tables in rising priority: those in the folders, those among the paths, ``slides.table``."""
    paths = [Path(text) for text in config.paths]
    folders = [path for path in paths if path.is_dir()]
    tables = [table for path in folders for table in sorted(path.rglob(TABLE_NAME)) if table.is_file()]
    tables += [path for path in paths if path.suffix.lower() == ".csv" and path.is_file()]
    return tables + ([Path(config.table)] if config.table else [])


def _table_rows(config: SlidesConfig) -> dict[Path, TableRow]:
    rows: dict[Path, TableRow] = {}
    for table in table_files(config):
        rows |= read_table(table)
    return rows


def _entries(files: Sequence[SlideFile], *, rows: Rows, columns: Sequence[str] | None) -> list[SlideEntry]:
    """Entries with their id and the tables' values; a slide is by default its file's stem, a patient its slide."""
    stems = Counter(file.stem for file in files)
    used_ids: set[str] = set()  # lower case: some file systems do not tell cases apart
    entries = []
    for file in files:
        # The stem in letters that every file system takes, with a number where the id is used already.
        plain = unicodedata.normalize("NFKD", file.stem).encode("ascii", "ignore").decode()
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[:_LONGEST_ID] or "slide"
        slide_id, number = safe, 1
        while slide_id.lower() in used_ids:
            number += 1
            slide_id = f"{safe}-{number}"
        used_ids.add(slide_id.lower())

        row = file.row(rows) or TableRow()
        slide = row.slide or (one_line(file.stem) if stems[file.stem] == 1 else slide_id)
        extra = tuple((name, value) for name, value in row.extra if columns is None or name in columns)
        entry = SlideEntry(slide_id, file.file, patient=row.patient or slide, slide=slide)
        entries.append(replace(entry, split=row.split or "", extra=extra))
    return entries


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


# --- the files that may be slides ---


def find_files(config: SlidesConfig, *, rows: Rows) -> list[SlideFile]:
    """Every file once: those of the paths by their names, then those that a table names and that do not exist.

    Raises ``UserError`` where a path is missing, or nothing is found.
    """
    roots = [Path(text) for text in config.paths]
    for root, text in zip(roots, config.paths, strict=True):
        try:
            exists = root.exists() or root.is_symlink()
        except (OSError, ValueError):
            exists = False
        if not exists:
            raise UserError(f"{text} does not exist; give files or folders of slides")
    limits = None if config.follow_links else [root.resolve() for root in roots]
    present: dict[Path, SlideFile] = {}
    for item in _one_per_series(item for root in roots for item in _files_at(root, limits=limits)):
        present.setdefault(item.real, item)
    absent = [replace(_slide_file(file), reason=ABSENT) for file in rows if not file.exists() and file not in present]
    if not present and not absent:
        raise UserError(
            f"no slides in {', '.join(config.paths)}; give files or folders with any of {' '.join(sorted(SUFFIXES))}"
        )
    return [*present.values(), *absent]


def _files_at(path: Path, *, limits: Sequence[Path] | None) -> Iterator[SlideFile]:
    """The slides of a path: a file, a folder or a table.

    ``limits`` are the places that links in folders may lead to, None: anywhere.
    """
    if path.suffix.lower() == ".csv" and path.is_file():
        for file in read_table(path):
            if file.is_dir():
                yield from _files_in(file, limits=None if limits is None else [*limits, file])
            elif file.exists():
                yield _slide_file(file)
    elif path.is_dir():
        yield from _files_in(path, limits=limits)
    else:
        yield _checked(_slide_file(path.absolute()), limits=None)


def _files_in(folder: Path, *, limits: Sequence[Path] | None) -> Iterator[SlideFile]:
    """The files of a folder that are slides by name: a known suffix, not hidden, no side file as NAME.truth.png."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if name.suffix.lower() not in SUFFIXES or hidden or name.stem.endswith(".truth"):
            continue
        if file.is_symlink() or not file.is_dir():
            yield _checked(replace(_slide_file(file.absolute()), name=name.as_posix()), limits=limits)


def _slide_file(file: Path) -> SlideFile:
    try:
        real = file.resolve()
    except (OSError, RuntimeError):  # links in a circle
        real = file
    # The data files of a MIRAX slide lie in a folder of its name.
    folder = file.with_suffix("")
    members = tuple(sorted(folder.iterdir())) if file.suffix.lower() == ".mrxs" and folder.is_dir() else ()
    return SlideFile(file, file.name, real, file.stem, members=members)


def _checked(item: SlideFile, *, limits: Sequence[Path] | None) -> SlideFile:
    """The file with the reason why it must not be opened, if there is one."""
    if not is_unicode(item.name):
        return replace(item, reason=NOT_UNICODE)
    if item.file.is_symlink():
        if not item.file.exists():
            return replace(item, reason=LINK_NOWHERE)
        if limits is not None and not any(item.real.is_relative_to(place) for place in limits):
            return replace(item, reason=LINK_OUT)
    return item if item.file.is_file() else replace(item, reason=NOT_REGULAR)


def _one_per_series(items: Iterable[SlideFile]) -> Iterator[SlideFile]:
    """The items, with each DICOM series as one: its first file.

    The slide is named after its folder where that holds no other series.
    """
    by_folder: dict[Path, dict[Path, SlideFile]] = {}
    for item in items:
        if item.reason or not dicom.is_dicom_name(item.file):
            yield item
            continue
        folder = item.file.parent
        if folder not in by_folder:
            series = dicom.series_in(folder)
            slides = by_folder[folder] = {}
            for first, *others in series:
                stem = folder.name if len(series) == 1 and folder.name else first.stem
                slide = replace(_slide_file(first), stem=stem, members=tuple(others))
                slides |= dict.fromkeys((first, *others), slide)
        series_slide = by_folder[folder].get(item.file)
        if series_slide is not None:
            item = replace(series_slide, name=f"{Path(item.name).parent}/{series_slide.name}")
        yield item
