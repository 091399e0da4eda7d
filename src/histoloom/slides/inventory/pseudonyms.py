"""Runs that hold no name of a slide or patient: names become keyed hashes (HMAC-SHA256, RFC 2104).

The key and what each hash stands for lie in the private folder, outside of every run: ``HISTOLOOM_PRIVATE``, by default
``~/.histoloom``. The key is its file ``key``, or the environment variable ``HISTOLOOM_KEY``. Without them nobody gets
from a hash to a name, or tells by trying names which one it is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from histoloom.config import PRIVATE, SlidesConfig
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, read_json, write_json
from histoloom.slides.entries import SlideEntry, SlideError

FOLDER_VARIABLE, KEY_VARIABLE = "HISTOLOOM_PRIVATE", "HISTOLOOM_KEY"
SHORTEST_KEY = 32

_DIGITS = 16


@dataclass(frozen=True)
class Pseudonyms:
    """The names of one run: ``key`` hashes them, ``record`` is the file that gives them back."""

    key: bytes
    record: Path

    @property
    def key_id(self) -> str:
        """What tells keys apart and gives nothing of them away."""
        return _digest(self.key, "key", "")

    @property
    def token(self) -> str:
        """What the run calls its slides by."""
        return f"{PRIVATE}{self.record.stem}"

    def revealed(self, config: SlidesConfig) -> SlidesConfig:
        """``config`` with the paths and the table that the user gave; of further columns none unless they are named."""
        given = self._read()
        return config.model_copy(
            update={
                "paths": tuple(given["paths"]),
                "table": given["table"],
                "columns": config.columns or (),
                "pseudonyms": None,
            }
        )

    def hide(self, entries: Sequence[SlideEntry]) -> list[SlideEntry]:
        """The entries under hashed ids, slides and patients; writes down whose they are."""
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
        known = self._read()
        names = {
            new.slide_id: {"file": str(old.file), "slide": old.slide, "patient": old.patient, "patient_id": new.patient}
            for old, new in zip(entries, hidden, strict=True)
            if _is_text(str(old.file))
        }
        if not names.items() <= known["slides"].items():
            with disk_errors_explained(self.record):
                write_json(self.record, known | {"slides": known["slides"] | names})
        return hidden

    def _read(self) -> dict[str, Any]:
        if not self.record.is_file():
            raise UserError(
                f"the names of this run's slides are not in {self.record.parent}; set {FOLDER_VARIABLE} to the private "
                "folder that it was made with"
            )
        return dict(read_json(self.record))


def conceal(config: SlidesConfig, *, run: Path) -> SlidesConfig:
    """``config`` without names, for a run at ``run``; they go to the private folder, which is made where missing.

    Raises ``UserError`` where that folder lies in the run or cannot be written, or the key is too short.
    """
    folder = private_folder()
    if folder.resolve().is_relative_to(run.resolve()):
        raise UserError(f"the private folder {folder} lies in the run; set {FOLDER_VARIABLE} to a place outside of it")
    given: dict[str, Any] = {"paths": list(config.paths), "table": config.table}
    with disk_errors_explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _key(folder, make=True)
        names = Pseudonyms(key, folder / f"{_digest(key, 'run', json.dumps(given))}.json")
        if not names.record.exists():
            write_json(names.record, given | {"slides": {}})
    values = {"paths": (names.token,), "table": None, "pseudonyms": names.key_id}
    return SlidesConfig.model_validate(config.model_dump() | values)


def pseudonyms(config: SlidesConfig) -> Pseudonyms | None:
    """What hides the names of a pseudonymised run; None where it is not one. ``UserError`` where the key is another."""
    if config.pseudonyms is None:
        return None
    folder = private_folder()
    names = Pseudonyms(_key(folder, make=False), folder / f"{config.paths[0].removeprefix(PRIVATE)}.json")
    if not hmac.compare_digest(names.key_id, config.pseudonyms):
        raise UserError(
            f"this run was made with another key than the one here; set {FOLDER_VARIABLE} or {KEY_VARIABLE} as then"
        )
    return names


def real_file(stored: str) -> Path:
    """The file that ``slides.parquet`` names, by the private folder where it names a pseudonym.

    Raises ``SlideError`` where the private folder does not know it.
    """
    if not stored.startswith(PRIVATE):
        return Path(stored)
    token, _, slide_id = stored.removeprefix(PRIVATE).partition("/")
    record = private_folder() / f"{token}.json"
    known = read_json(record)["slides"] if record.is_file() else {}
    if slide_id not in known:
        raise SlideError(f"its file is not known here; set {FOLDER_VARIABLE} to the run's private folder")
    return Path(known[slide_id]["file"])


def told(error: SlideError, *, stored: str) -> str:
    """What may be kept of ``error`` about the file that ``slides.parquet`` names ``stored``."""
    return error.reason if stored.startswith(PRIVATE) else str(error)


def private_folder() -> Path:
    """Where keys and names lie."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".histoloom"


def _key(folder: Path, *, make: bool) -> bytes:
    text = os.environ.get(KEY_VARIABLE)
    path = folder / "key"
    if text is None:
        if make and not path.exists():
            _write_key(path)
        if not path.is_file():
            raise UserError(
                f"the key of this run's names is not in {folder}; set {FOLDER_VARIABLE} to its private folder"
            )
        text = path.read_text(encoding="utf-8")
    if len(text.strip()) < SHORTEST_KEY:
        raise UserError(
            f"the key of pseudonyms has {len(text.strip())} characters; give at least {SHORTEST_KEY} random ones: "
            "openssl rand -hex 32"
        )
    return text.strip().encode()


def _write_key(path: Path) -> None:
    """Only its owner may read it, and of two processes that make one the first wins."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32) + "\n")


def _digest(key: bytes, kind: str, name: str) -> str:
    """Hexadecimal; ``kind`` keeps a patient and a slide of one name apart."""
    return hmac.new(key, f"{kind}\0{name}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:_DIGITS]


def _is_text(name: str) -> bool:
    return name.encode("utf-8", "replace").decode() == name
