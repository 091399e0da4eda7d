"""The slides of a run: files, folders, and the CSVs that go with them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.run.directory import file_digest, fingerprint
from histoloom.slides.entries import SlideEntry, SlideError, one_line
from histoloom.slides.inventory.pseudonyms import open_pseudonyms
from histoloom.slides.inventory.search import CONVERT, UNREAD_SUFFIXES, Rows, SlideFile, find_files
from histoloom.slides.inventory.table import TableRow
from histoloom.slides.places import NO_PLACES, PlaceFiles
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.scale import GUESS, NO_MPP, TABLE, Scale, decide
from histoloom.slides.regions import NO_REGIONS, RegionFiles

logger = logging.getLogger("histoloom")

SAMPLES = 14
"""Blocks of a slide's file, besides both ends, by which its content is told apart."""

_LONGEST_ID = 100
_REASONS_IN_MESSAGE = 3
_NAMES_IN_MESSAGE = 20


def find_slides(config: SlidesConfig, *, say: Callable[[str], None] = logger.warning) -> list[SlideEntry]:
    """Every slide under the configured paths, opened once; the status of those that cannot be used is the reason.

    ``say`` is told what was passed by. Raises ``UserError`` where a path is missing, a table is wrong or fits no
    slide, or no slide is usable.
    """
    pseudonyms = open_pseudonyms(config)
    config = config if pseudonyms is None else pseudonyms.reveal(config)
    found = find_files(config)
    rows, files = found.rows, [*found.slides, *found.absent]
    table_columns = {name for row in rows.values() for name, _ in row.extra}
    unknown = [name for name in config.columns or () if name not in table_columns]
    if unknown:
        raise UserError(
            f"slides.columns names {unknown[0]!r}, which no table has; they have: "
            f"{', '.join(sorted(table_columns)) or 'none'}"
        )

    entries = _with_contents(_entries(files, rows=rows, columns=config.columns), files=files, rows=rows)
    if pseudonyms is not None:
        entries = pseudonyms.hide(entries)
    entries = [
        entry.left_out(file.reason) if file.reason else _examined(entry, row=file.row(rows), config=config)
        for entry, file in zip(entries, files, strict=True)
    ]
    if config.regions is not None:
        regions = RegionFiles(config.regions)
        entries = [replace(entry, regions=regions.of(entry.file)) for entry in entries]
        entries = [entry.left_out(NO_REGIONS) if entry.usable and entry.regions is None else entry for entry in entries]
    if config.places is not None:
        places = PlaceFiles(config.places)
        entries = [replace(entry, places=places.of(entry)) for entry in entries]
        entries = [entry.left_out(NO_PLACES) if entry.usable and entry.places is None else entry for entry in entries]

    # What the user must know before the slides are used.
    if passed_by := found.passed_by.describe(names=pseudonyms is None):
        say(passed_by)
    if copies := _describe_copies(entries):
        say(copies)
    unlisted = sum(file.row(rows) is None for file in found.slides) if rows else 0
    if unlisted:
        say(f"{unlisted} of {len(found.slides)} slides are in no table: each counts as a patient of its own")
    no_mpp = [entry.display_name for entry in entries if entry.status == NO_MPP]
    usable = any(entry.usable for entry in entries)
    if no_mpp and usable:
        say(
            f"{len(no_mpp)} of {len(entries)} slides do not say their mpp (um/px) and are left out: {_listed(no_mpp)}; "
            "to use them give --mpp, for example --mpp 0.5, or a CSV with columns file and mpp (--table)"
        )
    guessed = [f"{e.display_name} {e.mpp:g}" for e in entries if e.usable and e.mpp_source.startswith(GUESS)]
    if guessed:
        say(
            f"{len(guessed)} of {len(entries)} slides do not say their mpp (um/px); it is guessed from the power of "
            f"the objective, which can be wrong by a factor of two: {_listed(guessed)}; to replace the guess give "
            "--mpp, or a CSV with columns file and mpp"
        )
    if pseudonyms is not None and not all(entry.usable for entry in entries):
        logger.info("the names of these slides are in %s", pseudonyms.record)
    if not usable:
        raise UserError(none_usable(entries))
    return entries if pseudonyms is None else sorted(entries, key=lambda entry: entry.slide_id)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_IN_MESSAGE} more" if len(names) > _NAMES_IN_MESSAGE else ""
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + more


def none_usable(entries: Sequence[SlideEntry]) -> str:
    """One line: why each of the first slides is left out."""
    reasons = [f"{entry.display_name} {entry.status}" for entry in entries[:_REASONS_IN_MESSAGE]]
    more = f"; and {len(entries) - _REASONS_IN_MESSAGE} more" if len(entries) > _REASONS_IN_MESSAGE else ""
    return f"none of the {len(entries)} slides found can be used: {'; '.join(reasons)}{more}"


def inventory_fingerprint(config: SlidesConfig, *, samples: int = SAMPLES) -> str:
    """A digest of the slides, the tables, and the settings that say how they are used.

    Of each slide its name relative to the given path, its size, both ends of its file and ``samples`` blocks between
    them; of each table the text. A change between these blocks goes unnoticed, so that little of each file is read.
    """
    pseudonyms = open_pseudonyms(config)
    config = config if pseudonyms is None else pseudonyms.reveal(config)
    files: list[tuple[object, ...]] = []
    found = find_files(config)
    for item in found.slides:
        if item.reason:
            continue
        try:
            files.append((item.name, *_content(item, samples=samples)))
        except OSError as error:
            files.append((item.name, 0, f"cannot be read: {error.strerror}"))
    settings = {
        "mpp": config.mpp,
        "columns": config.columns,
        "pseudonyms": None if pseudonyms is None else pseudonyms.key_id,
    }
    content: dict[str, object] = {
        "files": sorted(files),
        "tables": [table.read_bytes().hex() for table in found.tables],
    }
    if config.regions is not None:
        regions = RegionFiles(config.regions)
        drawn = [(item.name, regions.of(item.file)) for item in found.slides if not item.reason]
        content["regions"] = sorted((name, file_digest(file, samples=samples)) for name, file in drawn if file)
    if config.places is not None:
        files_of_places = PlaceFiles(config.places).files.items()
        content["places"] = sorted((name, file_digest(file, samples=samples)) for name, file in files_of_places)
    return fingerprint(content | {name: value for name, value in settings.items() if value is not None})


def _content(file: SlideFile, *, samples: int) -> tuple[object, ...]:
    """What tells a slide's content apart: its size, its digest, and its members' names and sizes."""
    content: tuple[object, ...] = (file.file.stat().st_size, file_digest(file.file, samples=samples))
    members = [(member.name, member.stat().st_size) for member in file.members]
    return (*content, members) if members else content


def _with_contents(entries: Sequence[SlideEntry], *, files: Sequence[SlideFile], rows: Rows) -> list[SlideEntry]:
    """The entries with a digest of their content.

    A copy has the slide and the patient of the first of its content, where no table gives others.
    """
    first: dict[str, SlideEntry] = {}
    result = []
    for entry, file in zip(entries, files, strict=True):
        copy = entry
        if not file.reason:
            with suppress(OSError):  # opening it gives the reason
                content = fingerprint(_content(file, samples=SAMPLES))
                original, row = first.setdefault(content, entry), file.row(rows) or TableRow()
                slide, patient = row.slide or original.slide, row.patient or original.patient
                copy = replace(entry, content=content, slide=slide, patient=patient)
        result.append(copy)
    return result


def _describe_copies(entries: Sequence[SlideEntry]) -> str:
    """One line about usable slides of equal content, empty where there are none."""
    first: dict[str, SlideEntry] = {}
    copies = []
    for entry in entries:
        if entry.usable and first.setdefault(entry.content, entry) is not entry:
            both = (entry, first[entry.content])
            copies.append(" of ".join(each.slide_id if each.alias else one_line(str(each.file)) for each in both))
    if not copies:
        return ""
    more = f"; and {len(copies) - _REASONS_IN_MESSAGE} more" if len(copies) > _REASONS_IN_MESSAGE else ""
    return (
        f"{len(copies)} of {len(entries)} slides are copies of others, by their content: "
        f"{'; '.join(copies[:_REASONS_IN_MESSAGE])}{more}; copies stay on one side of the split, and their "
        "tissue counts more than once: take them out"
    )


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
    """The entry with its size and scale, or with the reason why it is left out."""
    given = Scale(row.mpp, TABLE) if row is not None and row.mpp is not None else None
    try:
        with open_slide(entry.file) as slide:
            (width, height), scale = slide.dimensions, decide(slide.scale, given=given, default=config.mpp)
    except SlideError as error:
        cure = f"; {CONVERT}" if entry.file.suffix.lower() in UNREAD_SUFFIXES else ""
        return entry.left_out(entry.public_reason(error) + cure)
    sized = replace(entry, width=width, height=height)
    if scale is None:
        return sized.left_out(NO_MPP)
    return replace(sized, mpp=scale.mpp, mpp_source=scale.source)
