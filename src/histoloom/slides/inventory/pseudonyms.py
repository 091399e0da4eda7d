"""Runs that hold no name of a slide or patient: names become keyed hashes (HMAC-SHA256, RFC 2104).

The key and the names behind the hashes lie in the private folder, outside of every run: ``HISTOLOOM_PRIVATE``, by
default ``~/.histoloom``. The key is its file ``key``, or the environment variable ``HISTOLOOM_KEY``. Without the key
nobody can compute the name behind a hash, or check a guess of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histoloom.config import PRIVATE, SlidesConfig
from histoloom.errors import SlidesAbsent, UserError
from histoloom.run.directory import disk_errors_explained, read_json, write_json
from histoloom.run.record import Record
from histoloom.run.user import expand_home, home_folder
from histoloom.slides.entries import SlideEntry, SlideError, is_unicode

FOLDER_VARIABLE, KEY_VARIABLE = "HISTOLOOM_PRIVATE", "HISTOLOOM_KEY"
SHORTEST_KEY = 32

_DIGITS = 16
_OPTIONAL = ("regions", "places")  # settings of slides that may name files


class SlideNames(Record):
    """The names behind one hashed slide id."""

    file: str
    slide: str
    patient: str
    patient_id: str


class PrivateRecord(Record):
    """``TOKEN.json`` in the private folder: the paths, table, regions and places of a run as the user gave them, and
    its slides' names by hashed slide id.
    """

    paths: tuple[str, ...]
    table: str | None
    regions: str | None = None
    places: str | None = None
    slides: Mapping[str, SlideNames]

    @staticmethod
    def load(path: Path) -> PrivateRecord:
        """Read a record."""
        return PrivateRecord.model_validate(read_json(path))

    def save(self, path: Path) -> None:
        """Write the record; raises ``UserError`` where the folder cannot be written."""
        with disk_errors_explained(path):
            write_json(path, self.model_dump(mode="json"))


@dataclass(frozen=True)
class Pseudonyms:
    """The pseudonyms of one run: ``key`` hashes its names, ``record`` is the private file that gives them back."""

    key: bytes
    record: Path

    @property
    def key_id(self) -> str:
        """A hash that tells keys apart and reveals nothing of them."""
        return _digest(self.key, "key", "")

    @property
    def token(self) -> str:
        """What stands for the run's slides in its configuration and tables."""
        return f"{PRIVATE}{self.record.stem}"

    def reveal(self, config: SlidesConfig) -> SlidesConfig:
        """``config`` with the user's paths, table, regions and places; further columns only where they are named."""
        record = self._load()
        given = {name: getattr(record, name) for name in ("paths", "table", *_OPTIONAL)}
        return config.model_copy(update=given | {"columns": config.columns or (), "pseudonyms": None})

    def hide(self, entries: Sequence[SlideEntry]) -> list[SlideEntry]:
        """The entries under hashed ids, slides and patients; their names are added to the private record."""
        hidden = [
            replace(
                entry,
                slide_id=(slide_id := "s" + _digest(self.key, "slide", entry.slide_id)),
                slide="s" + _digest(self.key, "slide", entry.slide),
                patient="p" + _digest(self.key, "patient", entry.patient),
                alias=f"{self.token}/{slide_id}",
            )
            for entry in entries
        ]
        record = self._load()
        names = {
            new.slide_id: SlideNames(file=str(old.file), slide=old.slide, patient=old.patient, patient_id=new.patient)
            for old, new in zip(entries, hidden, strict=True)
            if is_unicode(str(old.file))
        }
        if not names.items() <= record.slides.items():
            record.model_copy(update={"slides": {**record.slides, **names}}).save(self.record)
        return hidden

    def _load(self) -> PrivateRecord:
        if not self.record.is_file():
            raise SlidesAbsent(
                f"the names of this run's slides are not in {self.record.parent}; set {FOLDER_VARIABLE} to the private "
                "folder that it was made with"
            )
        return PrivateRecord.load(self.record)


def pseudonymised(config: SlidesConfig, *, run: Path) -> SlidesConfig:
    """``config`` without names, for a run at ``run``; they go to the private folder, which is made where missing.

    Raises ``UserError`` where that folder lies in the run or cannot be written, or the key is too short.
    """
    folder = private_folder()
    if folder.resolve().is_relative_to(run.resolve()):
        raise UserError(f"the private folder {folder} lies in the run; set {FOLDER_VARIABLE} to a place outside of it")
    with disk_errors_explained(folder, cure=f"set {FOLDER_VARIABLE} to a folder of yours"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _load_key(folder, create=True)
    optional = {name: value for name in _OPTIONAL if (value := getattr(config, name)) is not None}
    inputs = {"paths": list(config.paths), "table": config.table, **optional}
    pseudonyms = Pseudonyms(key, folder / f"{_digest(key, 'run', json.dumps(inputs))}.json")
    if not pseudonyms.record.exists():
        record = PrivateRecord(paths=config.paths, table=config.table, slides={}, **optional)
        record.save(pseudonyms.record)
    values = {"paths": (pseudonyms.token,), "table": None, "pseudonyms": pseudonyms.key_id}
    values |= dict.fromkeys(optional, pseudonyms.token)
    return SlidesConfig.model_validate(config.model_dump() | values)


def open_pseudonyms(config: SlidesConfig) -> Pseudonyms | None:
    """The pseudonyms of a run; None where it has none. ``UserError`` where it was made with another key."""
    if config.pseudonyms is None:
        return None
    folder = private_folder()
    key = _load_key(folder, create=False)
    pseudonyms = Pseudonyms(key, folder / f"{config.paths[0].removeprefix(PRIVATE)}.json")
    if not hmac.compare_digest(pseudonyms.key_id, config.pseudonyms):
        raise UserError(
            f"this run was made with another key than the one here; set {FOLDER_VARIABLE} or {KEY_VARIABLE} as then"
        )
    return pseudonyms


def real_file(stored: str, *, paths: Sequence[str] = ()) -> Path:
    """The file behind a ``file`` of ``slides.parquet``; for a pseudonym, the private folder knows it.

    ``paths`` are those of the run's configuration, where a file that has moved is looked for: at the longest end of its
    old path that exists there. Raises ``SlideError`` where the private folder does not know the file.
    """
    if not stored.startswith(PRIVATE):
        file = Path(stored)
        ends = [Path(*file.parts[start:]) for start in range(1, len(file.parts))]
        places = (place for root in map(Path, paths) for place in (*(root / end for end in ends), root))
        is_there = file.is_file() or not paths
        return file if is_there else next((at for at in places if at.name == file.name and at.is_file()), file)
    token, _, slide_id = stored.removeprefix(PRIVATE).partition("/")
    record = private_folder() / f"{token}.json"
    names = PrivateRecord.load(record).slides.get(slide_id) if record.is_file() else None
    if names is None:
        raise SlideError(f"its file is not known here; set {FOLDER_VARIABLE} to the run's private folder")
    return Path(names.file)


def public_reason(error: SlideError, *, stored: str) -> str:
    """The text of ``error`` that may be shown for a ``file`` of ``slides.parquet``, as ``SlideEntry.public_reason``."""
    return error.reason if stored.startswith(PRIVATE) else str(error)


def private_folder() -> Path:
    """The folder of keys and names; ``UserError`` where none is named and no home folder is known."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return expand_home(folder, setting=FOLDER_VARIABLE)
    home = home_folder()
    if home is None:
        raise UserError(f"no home folder is known for the private folder; set {FOLDER_VARIABLE} to a folder that stays")
    return home / ".histoloom"


def _load_key(folder: Path, *, create: bool) -> bytes:
    text = os.environ.get(KEY_VARIABLE)
    path = folder / "key"
    if text is None and create and not path.exists():
        # Only its owner may read it, and of two processes that create one the first wins.
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_hex(32) + "\n")
    if text is None and not path.is_file():
        raise SlidesAbsent(
            f"the key of this run's names is not in {folder}; set {FOLDER_VARIABLE} to its private folder"
        )
    key = (path.read_text(encoding="utf-8") if text is None else text).strip()
    if len(key) < SHORTEST_KEY:
        raise UserError(
            f"the key of pseudonyms has {len(key)} characters; give at least {SHORTEST_KEY} random ones: "
            "openssl rand -hex 32"
        )
    return key.encode()


def _digest(key: bytes, kind: str, name: str) -> str:
    """Hexadecimal; ``kind`` keeps a patient and a slide of one name apart."""
    return hmac.new(key, f"{kind}\0{name}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:_DIGITS]
