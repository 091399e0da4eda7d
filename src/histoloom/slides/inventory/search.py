"""The files that may be slides, under the paths and in the tables that the user gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides.inventory import dicom
from histoloom.slides.inventory.table import TableRow, read_table

PYRAMID_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")
SUFFIXES = frozenset(PYRAMID_SUFFIXES + FLAT_SUFFIXES + dicom.SUFFIXES)
TABLE_NAME = "slides.csv"

LINK_OUT = (
    "is a link to a place outside the given paths; give that place too, or allow such links: "
    "--set slides.follow_links=true"
)
LINK_NOWHERE = "is a link that leads to no file"
NOT_UNICODE = "has a name that is not Unicode; rename the file"
NOT_REGULAR = "is not a regular file"
ABSENT = "the file does not exist"

Rows = Mapping[Path, TableRow]


@dataclass(frozen=True)
class Found:
    """A slide's file (absolute) and its name relative to the path that the user gave.

    ``real`` has links followed. ``stem`` is the slide's name by default; ``members`` are the other files that it is
    made of; ``reason`` says why it is not to be opened, where that is so.
    """

    file: Path
    name: str
    real: Path
    stem: str
    members: tuple[Path, ...] = ()
    reason: str = ""

    def row(self, rows: Rows) -> TableRow | None:
        """What the tables say of it: of its file, else of one of its members or of the folder of a DICOM slide."""
        places = [self.real, *(member.resolve() for member in self.members)]
        if dicom.is_dicom_name(self.file):
            places.append(self.real.parent)
        return next((rows[place] for place in places if place in rows), None)


def found_slides(config: SlidesConfig, *, rows: Rows) -> list[Found]:
    """Every file once: those of the paths by their names, then what a table names and is not there.

    Raises ``UserError`` where a path is missing, or nothing is found.
    """
    roots = [_given(text) for text in config.paths]
    limits = None if config.follow_links else [root.resolve() for root in roots]
    found: dict[Path, Found] = {}
    for item in _slides_of_series(item for root in roots for item in _under(root, limits=limits)):
        found.setdefault(item.real, item)
    for file in rows:
        if not file.exists():
            found.setdefault(file, replace(_named(file), reason=ABSENT))
    if not found:
        raise UserError(
            f"no slides in {', '.join(config.paths)}; give files or folders with any of {' '.join(sorted(SUFFIXES))}"
        )
    return [item for item in found.values() if item.reason != ABSENT] + [
        item for item in found.values() if item.reason == ABSENT
    ]


def table_files(config: SlidesConfig) -> list[Path]:
    """The tables in rising weight: those that lie in given folders, those given as paths, the configured one."""
    paths = [Path(text) for text in config.paths]
    folders = [path for path in paths if path.is_dir()]
    tables = [table for path in folders for table in sorted(path.rglob(TABLE_NAME)) if table.is_file()]
    tables += [path for path in paths if path.suffix.lower() == ".csv" and path.is_file()]
    return tables + ([Path(config.table)] if config.table else [])


def _given(text: str) -> Path:
    path = Path(text)
    try:
        there = path.exists() or path.is_symlink()
    except (OSError, ValueError):
        there = False
    if not there:
        raise UserError(f"{text} does not exist; give files or folders of slides")
    return path


def _under(path: Path, *, limits: Sequence[Path] | None) -> Iterator[Found]:
    """What a path stands for; ``limits`` are the places that links in folders may lead to, None: anywhere."""
    if path.suffix.lower() == ".csv" and path.is_file():
        for file in read_table(path):
            if file.is_dir():
                yield from _in_folder(file, limits=None if limits is None else [*limits, file])
            elif file.exists():
                yield _named(file)
    elif path.is_dir():
        yield from _in_folder(path, limits=limits)
    else:
        yield _judged(_named(path.absolute()), limits=None)


def _in_folder(folder: Path, *, limits: Sequence[Path] | None) -> Iterator[Found]:
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if _looks_like_slide(name) and (file.is_symlink() or not file.is_dir()):
            yield _judged(replace(_named(file.absolute()), name=name.as_posix()), limits=limits)


def _looks_like_slide(path: Path) -> bool:
    """By name: a known suffix, not hidden, and no side file such as NAME.truth.png."""
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden and not path.stem.endswith(".truth")


def _named(file: Path) -> Found:
    try:
        real = file.resolve()
    except (OSError, RuntimeError):  # links in a circle
        real = file
    return Found(file, file.name, real, file.stem, members=_companions(file))


def _judged(item: Found, *, limits: Sequence[Path] | None) -> Found:
    """The file with the reason why it is not to be opened, if there is one."""
    if not _is_unicode(item.name):
        return replace(item, reason=NOT_UNICODE)
    if item.file.is_symlink():
        if not item.file.exists():
            return replace(item, reason=LINK_NOWHERE)
        if limits is not None and not any(item.real.is_relative_to(place) for place in limits):
            return replace(item, reason=LINK_OUT)
    return item if item.file.is_file() else replace(item, reason=NOT_REGULAR)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _companions(file: Path) -> tuple[Path, ...]:
    """The data files of a MIRAX slide, which lie in a folder of its name."""
    folder = file.with_suffix("")
    return tuple(sorted(folder.iterdir())) if file.suffix.lower() == ".mrxs" and folder.is_dir() else ()


def _slides_of_series(items: Iterable[Found]) -> Iterator[Found]:
    """The items, those of one DICOM series as one: its first file, named after its folder where that has no other."""
    known: dict[Path, dict[Path, Found]] = {}
    for item in items:
        if item.reason or not dicom.is_dicom_name(item.file):
            yield item
            continue
        folder = item.file.parent
        slides = known.get(folder)
        if slides is None:
            slides = known[folder] = _series_slides(folder)
        first = slides.get(item.file)
        yield item if first is None else replace(first, name=f"{Path(item.name).parent}/{first.name}")


def _series_slides(folder: Path) -> dict[Path, Found]:
    """The slide of each DICOM file in a folder."""
    series = dicom.series_in(folder)
    slides: dict[Path, Found] = {}
    for files in series:
        stem = folder.name if len(series) == 1 and folder.name else files[0].stem
        found = replace(_named(files[0]), stem=stem, members=tuple(files[1:]))
        slides |= dict.fromkeys(files, found)
    return slides
