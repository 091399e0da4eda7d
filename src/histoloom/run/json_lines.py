"""Append-only files of JSON objects, one a line: logs of stages, the names' journal, jobs, answers of readings.

A crash can tear the last line. Reading leaves such a line out; the next append closes it first, so that nothing that is
written later is lost with it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger("histoloom")


def append_lines(path: Path, values: Sequence[Mapping[str, object]], *, flush: bool = True) -> None:
    """Append objects in one ``write``: after a crash all of them count, or the first ones.

    ``flush``: they are on the disk when this returns (``fsync``), and so is a new file's entry in its folder. NaN is an
    error rather than invalid JSON. Raises ``OSError`` (ENOSPC) where the disk took only a part.
    """
    lines = "".join(json.dumps(dict(value), ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (("\n" if is_torn else "") + lines).encode()
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

    if flush and is_new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_lines(path: Path) -> list[dict[str, object]]:
    """All whole objects in their order; empty where there is no file. A torn line is left out with a warning."""
    if not path.is_file():
        return []
    values = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            values.append(value)
        else:
            logger.warning("%s: line %d is torn and left out", path, number)
    return values
