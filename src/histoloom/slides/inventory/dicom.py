"""DICOM slides: many files each, of one series in one folder. OpenSlide opens the whole slide by any one of them.

Of a file's header only the Series Instance UID (0020,000E) is read (DICOM PS3.5 7.1 and 7.5, PS3.10 7.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (".dcm", ".dicom")

_HEADER_BYTES = 2**18
_PREAMBLE, _MAGIC = 128, b"DICM"
_SERIES, _SYNTAX = (0x0020, 0x000E), (0x0002, 0x0010)
_IMPLICIT = "1.2.840.10008.1.2"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_DELIMITERS, _ITEM, _UNDEFINED = 0xFFFE, 0xE000, 0xFFFFFFFF


def is_dicom_name(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


def series_in(folder: Path) -> list[list[Path]]:
    """The DICOM files of a folder by series, in the order of their names; one that says no series is its own."""
    series: dict[str, list[Path]] = {}
    for file in sorted(_files(folder)):
        series.setdefault(series_uid(file) or f"{file.name}, no series", []).append(file)
    return list(series.values())


def series_uid(path: Path) -> str | None:
    """The Series Instance UID; None where the file is no DICOM, cannot be read, or does not say."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
    except OSError:
        return None
    start = _PREAMBLE + len(_MAGIC)
    if data[_PREAMBLE:start] != _MAGIC:
        return None
    syntax, end = _find(data, _SYNTAX, start=start, explicit=True)
    explicit = syntax != _IMPLICIT
    return _find(data, _SERIES, start=end, explicit=explicit)[0]


def _files(folder: Path) -> Iterable[Path]:
    return (
        file for file in folder.iterdir() if is_dicom_name(file) and not file.name.startswith(".") and file.is_file()
    )


def _find(data: bytes, wanted: tuple[int, int], *, start: int, explicit: bool) -> tuple[str | None, int]:
    """The value of an element outside of every sequence, and where the next one starts.

    Elements rise, so one beyond ``wanted`` ends the search; so does the end of ``data``. Little endian.
    """
    at, depth = start, 0
    while at + 12 <= len(data):
        tag = struct.unpack_from("<HH", data, at)
        length, header = _length(data, at, explicit=explicit and tag[0] != _DELIMITERS)
        if tag[0] == _DELIMITERS:
            opens = tag[1] == _ITEM and length == _UNDEFINED
            depth += 1 if opens else (-1 if tag[1] != _ITEM else 0)
            at += header
        elif depth == 0 and tag == wanted:
            return data[at + header : at + header + length].decode("ascii", "replace").strip(
                " \0"
            ), at + header + length
        elif depth == 0 and tag > wanted:
            return None, at
        else:
            depth += length == _UNDEFINED
            at += header + (0 if length == _UNDEFINED else length)
    return None, at


def _length(data: bytes, at: int, *, explicit: bool) -> tuple[int, int]:
    """An element's length and that of its header."""
    if not explicit:
        return int(struct.unpack_from("<I", data, at + 4)[0]), 8
    if data[at + 4 : at + 6] in _LONG:
        return int(struct.unpack_from("<I", data, at + 8)[0]), 12
    return int(struct.unpack_from("<H", data, at + 6)[0]), 8
