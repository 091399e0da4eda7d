"""Arrays with a row a patch that are larger than memory: in a file, by plain reads and writes of the rows asked for.

A memory map would count every page that was ever touched as this process's memory, and end the process where a file is
cut short. A plain read copies once into the caller's array, and raises.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from histoloom.errors import UserError

IN_MEMORY = 2**28
"""bytes; a smaller scratch array is an ordinary one"""
BLOCK = 1024
"""rows that are copied at once"""


class RowFile:
    """An array (N, ...) in a .npy file. ``rows[3:9]`` and ``rows[numbers]`` are new arrays with copies of those rows.

    ``rows[3:9] = values`` writes, where it was opened for it. Several threads may use it at once.
    """

    def __init__(self, file: IO[bytes], *, name: str, writable: bool = False, merged: bool = False) -> None:
        self._file, self._name, self._writable, self._merged = file, name, writable, merged
        # Closes the file with the last reference to this object, also where both are part of a cycle.
        weakref.finalize(self, file.close)
        self._lock = threading.Lock()
        version = np.lib.format.read_magic(file)
        shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
        assert (version, fortran) == ((1, 0), False), f"{name} is not an array that Histoloom wrote"
        self.shape = (shape[0] * shape[1], *shape[2:]) if merged else tuple(shape)
        self._start = file.tell()

    @staticmethod
    def open(path: Path, *, writable: bool = False, merged: bool = False) -> RowFile:
        """The array in a file that exists; ``merged``: its first two axes as one, a row for each version of a patch."""
        file = path.open("r+b" if writable else "rb", buffering=0)
        return RowFile(file, name=str(path), writable=writable, merged=merged)

    @staticmethod
    def create(path: Path, *, shape: Sequence[int], dtype: DTypeLike) -> RowFile:
        """A new array of zeros. On Linux its room on the disk is taken now: a disk that is full says so at once."""
        with path.open("wb") as file:
            _write_header(file, shape=shape, dtype=dtype)
            size = file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            file.truncate(size)
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
        return RowFile.open(path, writable=True)

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[object, ...]:
        return partial(RowFile.open, Path(self._name), writable=self._writable, merged=self._merged), ()

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if numbers.dtype == bool:
            numbers = np.flatnonzero(numbers)
        if len(numbers) and not -1 < numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)} in {self._name}")
        result = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        if not result.size:
            return result

        # Rows that follow one another are read at once.
        ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)] if len(numbers) else []
        for start, stop in zip([0, *ends], ends, strict=False):
            memory = result[start:stop].data.cast("B")
            with self._lock:
                self._file.seek(self._place(int(numbers[start])))
                read = 0
                while read < len(memory) and (n := self._file.readinto(memory[read:])):  # type: ignore[attr-defined]
                    read += n
            if read < len(memory):
                raise UserError(f"{self._name} is cut short; remove its stage's folder and run the same command again")
        return result

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        start, stop, step = rows.indices(len(self))
        expected = (stop - start, *self.shape[1:])
        assert self._writable, f"{self._name} is open for reading"
        assert (step, values.shape) == (1, expected), f"{values.shape} into {expected}"
        if not values.size:
            return
        memory = np.ascontiguousarray(values, dtype=self.dtype).data.cast("B")
        with self._lock:
            self._file.seek(self._place(start))
            written = 0
            while written < len(memory):
                written += self._file.write(memory[written:])

    def flush(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._file.fileno())

    def _place(self, row: int) -> int:
        """The row's first byte in the file."""
        return self._start + row * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


Rows = np.ndarray | RowFile
"""An array with a row a patch, in memory or in a file: its length, its shape, and some of its rows by number."""


def scratch_rows(shape: Sequence[int], dtype: DTypeLike, *, folder: Path | None) -> Rows:
    """An array to fill and use for a while: in memory up to ``IN_MEMORY``, else in a file that leaves with it.

    The file lies in ``folder``, or in the system's folder for such files where there is none or it takes none. It has
    no name, so that a killed process leaves nothing behind.
    """
    if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.empty(shape, dtype)
    usable = folder is not None and folder.is_dir() and os.access(folder, os.W_OK)
    file = tempfile.TemporaryFile(dir=folder if usable else None, buffering=0)  # noqa: SIM115
    _write_header(file, shape=shape, dtype=dtype)
    file.seek(0)
    return RowFile(file, name="a temporary file", writable=True)


def appended(rows: Rows, more: np.ndarray, *, folder: Path | None) -> Rows:
    """A scratch array with some rows more, copied ``BLOCK`` at a time."""
    result = scratch_rows((len(rows) + len(more), *rows.shape[1:]), rows.dtype, folder=folder)
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        result[start:stop] = rows[start:stop]
    result[len(rows) : len(rows) + len(more)] = more
    return result


def _write_header(file: IO[bytes], *, shape: Sequence[int], dtype: DTypeLike) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
