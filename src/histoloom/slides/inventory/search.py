"""The files of the configured paths that may be slides, their tables, and what is passed by.

Nothing is passed by in silence, but for hidden files and for what no slide is by its name.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from histoloom.config import SlidesConfig
from histoloom.errors import SlidesAbsent
from histoloom.run.own_output import is_own_folder, is_own_picture
from histoloom.slides.entries import is_unicode, one_line
from histoloom.slides.inventory import dicom
from histoloom.slides.inventory.table import TableRow, joined_rows, read_table

PYRAMID_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")
SUFFIXES = frozenset(PYRAMID_SUFFIXES + FLAT_SUFFIXES + dicom.SUFFIXES)
UNREAD_SUFFIXES = frozenset(
    {
        *(".vsi", ".qptiff", ".isyntax", ".i2syntax", ".afi", ".lif", ".zvi", ".mds", ".mdsx", ".kfb", ".sdpc"),
        *(".tmap", ".zarr", ".dzi", ".szi", ".nd2", ".j2k", ".jpx"),
    }
)
"""Formats of slides that no reader here opens."""
CONVERT = "convert to OME-TIFF, with the scanner's software or Bio-Formats"
TABLE_NAME = "slides.csv"

# Reasons why a slide is left out.
LINK_OUT = (
    "is a link to a place outside the given paths; give that place too, or allow such links: "
    "--set slides.follow_links=true"
)
LINK_NOWHERE = "is a link that leads to no file"
NOT_UNICODE = "has a name that is not Unicode; rename the file"
NOT_REGULAR = "is not a regular file"
OWN_PICTURE = "is a picture that Histoloom wrote, not a slide"
ABSENT = "the file does not exist"

_PLACES_IN_MESSAGE = 3
_INDEX_BYTES = 2**16

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

    @property
    def places(self) -> list[Path]:
        """What a table may call it: its file, its members, the folder of a DICOM slide."""
        folder = [self.real.parent] if dicom.is_dicom_name(self.file) else []
        return [self.real, *(member.resolve() for member in self.members), *folder]

    def row(self, rows: Rows) -> TableRow | None:
        """Its row of the tables."""
        return next((rows[place] for place in self.places if place in rows), None)


@dataclass
class PassedBy:
    """What a search did not look into, or could not."""

    own: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def describe(self, *, names: bool) -> str:
        """One line, empty where there is nothing to tell; places are named only with ``names``."""

        def places(paths: Sequence[str]) -> str:
            more = f" and {len(paths) - _PLACES_IN_MESSAGE} more" if len(paths) > _PLACES_IN_MESSAGE else ""
            return f" ({', '.join(map(one_line, paths[:_PLACES_IN_MESSAGE]))}{more})" if names else ""

        parts = []
        if self.unread:
            suffixes = " ".join(sorted(self.unread))
            parts.append(f"files of formats that are not read: {self.unread.total()} ({suffixes}); {CONVERT}")
        if self.links:
            parts.append(
                f"linked folders outside the given paths: {len(self.links)}{places(list(map(str, self.links)))}; to "
                "follow them: --set slides.follow_links=true"
            )
        if self.unreadable:
            shown = [f"{place}: {reason}" for place, reason in self.unreadable]
            parts.append(f"folders that cannot be read: {len(shown)}{places(shown)}")
        if self.own:
            parts.append(f"Histoloom's own results: {len(self.own)}{places(list(map(str, self.own)))}")
        return f"not searched for slides: {'; '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class FoundFiles:
    """What the configured paths hold.

    ``slides``: every file once. ``absent``: files that only a table names. ``tables``: in rising priority: those in
    the folders, those among the paths, ``slides.table``; ``rows``: theirs, by the file of the slide that they fit.
    """

    slides: list[SlideFile]
    absent: list[SlideFile]
    tables: list[Path]
    rows: Rows
    passed_by: PassedBy


def find_files(config: SlidesConfig) -> FoundFiles:
    """Search the configured paths.

    Raises ``SlidesAbsent`` where a path is missing or nothing is found, ``UserError`` where a table is wrong or fits no
    slide.
    """
    roots = [Path(text) for text in config.paths]
    for root in roots:
        if not os.path.lexists(root):
            raise SlidesAbsent(f"{root} does not exist; give files or folders of slides")
    limits = None if config.follow_links else [root.resolve() for root in roots]
    given_tables = [root for root in roots if _is_table(root)] + ([Path(config.table)] if config.table else [])
    contents = {table: read_table(table) for table in given_tables}

    # Slides and tables, in the order of their paths.
    passed_by = PassedBy()
    items: list[SlideFile] = []
    tables: list[Path] = []
    for root in roots:
        if _is_table(root):
            items += _files_of_table(contents[root], limits=limits, passed_by=passed_by)
        elif root.is_dir():
            files = _files_below(root, limits=limits, passed_by=passed_by)
            items += _slides_among(files, folder=root, limits=limits, passed_by=passed_by)
            tables += [file for file in files if file.name == TABLE_NAME and file.is_file()]
        else:
            items.append(_checked(_slide_file(root.absolute()), limits=None))
    present: dict[Path, SlideFile] = {}
    for item in _one_per_series(items):
        present.setdefault(item.real, item)
    parts = {member.resolve() for item in present.values() for member in item.members}
    present = {real: item for real, item in present.items() if real not in parts}
    if not present:
        listed = [file for root in roots if root in contents for file in contents[root]]
        known = f"give files or folders with any of {' '.join(sorted(SUFFIXES))}"
        what = f"none of the files listed there exists (the first: {listed[0]})" if listed else known
        skipped = passed_by.describe(names=True)
        raise SlidesAbsent(f"no slides in {', '.join(config.paths)}; {what}" + (f"; {skipped}" if skipped else ""))

    # The tables' rows, which must fit.
    contents |= {table: read_table(table) for table in tables}
    tables += given_tables
    rows: dict[Path, TableRow] = {}
    for table in tables:
        rows |= joined_rows(contents[table], table=table, slides={item.real: item.places for item in present.values()})
    absent = [replace(_slide_file(file), reason=ABSENT) for file in rows if not file.exists() and file not in present]
    return FoundFiles(list(present.values()), absent, tables, rows, passed_by)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def _files_of_table(rows: Rows, *, limits: Sequence[Path] | None, passed_by: PassedBy) -> Iterator[SlideFile]:
    """The slides that a table among the paths names, by file or folder."""
    for file in rows:
        if file.is_dir():
            within = None if limits is None else [*limits, file]
            files = _files_below(file, limits=within, passed_by=passed_by)
            yield from _slides_among(files, folder=file, limits=within, passed_by=passed_by)
        elif file.exists():
            yield _slide_file(file)


def _files_below(folder: Path, *, limits: Sequence[Path] | None, passed_by: PassedBy) -> list[Path]:
    """Every file in a folder and its subfolders, in the order of their paths, but for hidden ones.

    ``limits`` are the places that links may lead to, None: anywhere. What they lead to within the limits is found
    without them.
    """
    files: list[Path] = []
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        real = place.resolve()
        if real in seen:  # links in a circle
            continue
        seen.add(real)
        try:
            with os.scandir(place) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            passed_by.unreadable.append((place, error.strerror or str(error)))
            continue
        if not os.access(place, os.X_OK):
            passed_by.unreadable.append((place, os.strerror(errno.EACCES)))
            continue
        names = {entry.name for entry in entries}
        if is_own_folder(place, names=names):
            passed_by.own.append(place)
            continue

        for entry in entries:
            path = place / entry.name
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(path) if is_link else entry.is_dir()  # noqa: PTH112 - Path.is_dir may raise
            if not is_folder or path.suffix.lower() in UNREAD_SUFFIXES:  # a Zarr is a folder
                files.append(path)
            elif is_link and limits is not None:
                if not any(path.resolve().is_relative_to(limit) for limit in limits):
                    passed_by.links.append(path)
            elif f"{entry.name.removesuffix('_files')}.dzi" not in names:  # else the tiles of a Deep Zoom image
                waiting.append(path)
    return sorted(files)


def _slides_among(
    files: Sequence[Path], *, folder: Path, limits: Sequence[Path] | None, passed_by: PassedBy
) -> Iterator[SlideFile]:
    """Those of a folder's files that are slides by name: a known suffix, no side file as NAME.truth.png."""
    for file in files:
        suffix = file.suffix.lower()
        if suffix in UNREAD_SUFFIXES:
            passed_by.unread[suffix] += 1
        elif suffix in SUFFIXES and not file.stem.endswith(".truth"):
            name = file.relative_to(folder).as_posix()
            item = _checked(replace(_slide_file(file.absolute()), name=name), limits=limits)
            if item.reason == OWN_PICTURE:
                passed_by.own.append(file)
            else:
                yield item


def _slide_file(file: Path) -> SlideFile:
    try:
        real = file.resolve()
    except (OSError, RuntimeError):  # links in a circle
        real = file
    members: list[Path] = []
    if file.suffix.lower() == ".mrxs" and (folder := file.with_suffix("")).is_dir():  # MIRAX: a folder of its name
        members = sorted(folder.iterdir())
    elif file.suffix.lower() in (".vms", ".vmu") and file.is_file():
        # Hamamatsu: an index of KEY=NAME, of which some name the files beside it: tiles, map and macro.
        with suppress(OSError), file.open("rb") as index:
            lines = index.read(_INDEX_BYTES).decode("utf-8", "replace").splitlines()
            names = {line.partition("=")[2].strip() for line in lines}
            beside = [file.parent / name for name in names if Path(name).name == name]
            members = sorted(path for path in beside if path.is_file())
    return SlideFile(file, file.name, real, file.stem, members=tuple(members))


def _checked(item: SlideFile, *, limits: Sequence[Path] | None) -> SlideFile:
    """The file with the reason why it must not be opened, if there is one."""
    if not is_unicode(item.name):
        return replace(item, reason=NOT_UNICODE)
    if item.file.is_symlink():
        if not item.file.exists():
            return replace(item, reason=LINK_NOWHERE)
        if limits is not None and not any(item.real.is_relative_to(place) for place in limits):
            return replace(item, reason=LINK_OUT)
    if not item.file.is_file():
        return replace(item, reason=NOT_REGULAR)
    return replace(item, reason=OWN_PICTURE) if is_own_picture(item.file) else item


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
