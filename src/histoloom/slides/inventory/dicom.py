"""DICOM slides: many files each, of one series in one folder. OpenSlide opens the whole slide by any one of them.

Of a file's header only the Series Instance UID (0020,000E) is read (DICOM PS3.5 7.1 and 7.5, PS3.10 7.1).
"""

from __future__ import annotations

import struct
from pathlib import Path

SUFFIXES = (".dcm", ".dicom")

_HEADER_BYTES = 2**18
_PREAMBLE, _MAGIC = 128, b"DICM"
_SERIES, _SYNTAX = (0x0020, 0x000E), (0x0002, 0x0010)
_IMPLICIT = "1.2.840.10008.1.2"
# Value representations whose length takes four bytes, after two that are reserved.
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_DELIMITERS, _ITEM, _UNDEFINED = 0xFFFE, 0xE000, 0xFFFFFFFF


def is_dicom_name(path: Path) -> bool:
    """Whether a file is DICOM by its name."""
    return path.suffix.lower() in SUFFIXES


def series_in(folder: Path) -> list[list[Path]]:
    """The DICOM files of a folder by series, in the order of their names; a file without a series is its own."""
    series: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if is_dicom_name(file) and not file.name.startswith(".") and file.is_file():
            series.setdefault(series_uid(file) or f"{file.name}, no series", []).append(file)
    return list(series.values())


def series_uid(path: Path) -> str | None:
    """The Series Instance UID; None where the file is no DICOM, cannot be read, or has none."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
    except OSError:
        return None
    start = _PREAMBLE + len(_MAGIC)
    if data[_PREAMBLE:start] != _MAGIC:
        return None
    syntax, end = _find_element(data, _SYNTAX, start=start, explicit=True)
    return _find_element(data, _SERIES, start=end, explicit=syntax != _IMPLICIT)[0]


def _find_element(data: bytes, wanted: tuple[int, int], *, start: int, explicit: bool) -> tuple[str | None, int]:
    """The value of an element outside of every sequence, and where the next one starts.

    Tags rise, so one beyond ``wanted`` ends the search; so does the end of ``data``. Little endian.
    """
    at, depth = start, 0
    while at + 12 <= len(data):
        tag = struct.unpack_from("<HH", data, at)
        if not explicit or tag[0] == _DELIMITERS:
            length, header = int(struct.unpack_from("<I", data, at + 4)[0]), 8
        elif data[at + 4 : at + 6] in _LONG:
            length, header = int(struct.unpack_from("<I", data, at + 8)[0]), 12
        else:
            length, header = int(struct.unpack_from("<H", data, at + 6)[0]), 8
        value = at + header
        if tag[0] == _DELIMITERS:
            opens = tag[1] == _ITEM and length == _UNDEFINED
            depth += 1 if opens else (-1 if tag[1] != _ITEM else 0)
            at = value
        elif depth == 0 and tag == wanted:
            return data[value : value + length].decode("ascii", "replace").strip(" \0"), value + length
        elif depth == 0 and tag > wanted:
            return None, at
        else:
            depth += length == _UNDEFINED
            at = value + (0 if length == _UNDEFINED else length)
    return None, at
