"""Patches read from the files that hold them, ``images/{slide_id}.npy``, by plain reads.

A memory map would count what was ever read as this process's memory, fault page by page, and end the process where a
file is cut short; a plain read copies once into the array that is asked for and raises.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np

from histoloom.errors import UserError

_OPEN_FILES = 128  # each holds a file descriptor


class PatchFiles:
    """The patch files of a folder; the last used ones stay open. Several threads may read at once."""

    def __init__(self, folder: Path, *, size: int) -> None:
        self._folder = folder
        self._size = size
        self._opened = lru_cache(_OPEN_FILES)(_PatchFile)

    def read_into(self, patch: np.ndarray, *, slide_id: str, place: int) -> None:
        """Read a slide's patch number ``place`` into ``patch``, uint8 (size, size, 3), contiguous."""
        self._opened(self._folder / f"{slide_id}.npy", size=self._size).read_into(patch, place=place)


class _PatchFile:
    def __init__(self, path: Path, *, size: int) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        version = np.lib.format.read_magic(self._file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(self._file)
        assert version == (1, 0), "as the patches stage writes it"
        assert (dtype, fortran, shape[1:]) == (np.uint8, False, (size, size, 3)), f"{path} holds {dtype} {shape}"
        self._start = self._file.tell()
        self._count = shape[0]

    def read_into(self, patch: np.ndarray, *, place: int) -> None:
        if not 0 <= place < self._count:
            raise IndexError(f"no patch {place} in {self._path}")
        memory = patch.data.cast("B")
        with self._lock:
            self._file.seek(self._start + place * len(memory))
            read = 0
            while read < len(memory) and (n := self._file.readinto(memory[read:])):
                read += n
        if read < len(memory):
            raise UserError(f"{self._path} is cut short; remove its stage's folder and run the same command again")

    def __del__(self) -> None:
        """Not evicted while another thread still reads: the last reference closes."""
        if "_file" in self.__dict__:
            self._file.close()
