"""What Histoloom itself writes: a search for slides passes it by."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

_PNG = b"\x89PNG\r\n\x1a\n"
_SOFTWARE, _NAME = "Software", "Histoloom"
_MARK = f"{_SOFTWARE}\0{_NAME}".encode()
_FIRST_BYTES = 4096


def png_text() -> PngInfo:
    """The text chunk (tEXt, with the keyword Software) of every PNG that is written for others to find."""
    info = PngInfo()
    info.add_text(_SOFTWARE, _NAME)
    return info


def is_own_folder(folder: Path, *, names: Collection[str]) -> bool:
    """Whether a folder, which holds files of these names, is a run, a stage of one, of samples, or a painted field."""
    if "config.yaml" in names:  # a run, finished or new
        sections = {line.partition(b":")[0] for line in _first_bytes(folder / "config.yaml").splitlines()}
        return {b"seed", b"slides"} <= sections
    if "artifact.json" in names:
        text = _first_bytes(folder / "artifact.json")
        return b'"stage"' in text and b'"fingerprint"' in text
    if "field.json" in names:
        text = _first_bytes(folder / "field.json")
        return b'"synthetic"' in text and b'"tissues"' in text
    if "metadata.csv" in names:
        columns = _first_bytes(folder / "metadata.csv").split(b"\n")[0].strip().split(b",")
        return columns[0] == b"file_name" and {b"k", b"cluster"} <= set(columns)
    return False


def is_own_picture(path: Path) -> bool:
    """Whether a file is a PNG that Histoloom wrote."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    data = _first_bytes(path)
    return data.startswith(_PNG) and _MARK in data


def _first_bytes(path: Path) -> bytes:
    """The beginning of a file; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_FIRST_BYTES)
    except OSError:
        return b""
