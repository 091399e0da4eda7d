"""Slides that stay open while they are looked at: the last used ones, in bounded memory, for many threads at once."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from histoloom.slides.entries import SlideError
from histoloom.slides.readers.flat import FlatSlide
from histoloom.slides.readers.open import Slide, open_slide

MOST_BYTES = 512 * 2**20
"""Of what was decoded, over all open slides."""

CACHE_BYTES = 64 * 2**20
"""Of what was decoded, for each slide that is read in pieces."""

_FLAT_BYTES_A_PIXEL = 4  # Pillow keeps RGB in four bytes


@dataclass(eq=False)
class _Open:
    """An open slide: who uses it now, what it may hold in memory, and how its file looked when it was opened."""

    slide: Slide
    bytes: int
    seen: tuple[int, int]
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class OpenSlides:
    """Open slides by their path; to keep ``most_bytes``, those not in use are closed, the longest unused first."""

    def __init__(self, *, most_bytes: int = MOST_BYTES, cache_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes, self._cache_bytes = most_bytes, cache_bytes
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._dropped: list[_Open] = []
        self._lock = threading.Lock()
        self._opening: dict[Path, threading.Lock] = {}
        weakref.finalize(self, _close_all, self._open)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def bytes(self) -> int:
        """What the open slides may hold in memory."""
        with self._lock:
            return sum(entry.bytes for entry in self._open.values())

    @contextmanager
    def use(self, path: Path) -> Iterator[Slide]:
        """The slide at ``path``, open until the block ends; a file that was replaced is opened anew.

        Threads wait for each other where the slide's reader stands only one at a time. Raises ``SlideError``.
        """
        entry = self._taken(path)
        try:
            with self._turn(entry):
                yield entry.slide
        finally:
            self._given_back(entry)

    def close(self) -> None:
        """Close every slide; those in use when their users are done."""
        with self._lock:
            for path in list(self._open):
                self._drop(path)

    def _turn(self, entry: _Open) -> AbstractContextManager[object]:
        return nullcontext() if entry.slide.concurrent else entry.lock

    def _taken(self, path: Path) -> _Open:
        seen = _seen(path)
        with self._lock:
            opening = self._opening.setdefault(path, threading.Lock())
        # One thread opens, others of the same slide wait; those of other slides do not.
        with opening:
            with self._lock:
                entry = self._open.get(path)
                if entry is not None and entry.seen != seen:
                    self._drop(path)
                    entry = None
                if entry is not None:
                    return self._used(path, entry)
            slide = open_slide(path, cache_bytes=self._cache_bytes)
            entry = _Open(slide, self._bytes_of(slide), seen)
            with self._lock:
                self._open[path] = entry
                return self._used(path, entry)

    def _used(self, path: Path, entry: _Open) -> _Open:
        entry.users += 1
        self._open.move_to_end(path)
        self._make_room()
        return entry

    def _given_back(self, entry: _Open) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users == 0 and entry in self._dropped:
                self._dropped.remove(entry)
                entry.slide.close()
            self._make_room()

    def _make_room(self) -> None:
        held = sum(entry.bytes for entry in self._open.values())
        for path, entry in list(self._open.items()):
            if held <= self._most_bytes:
                return
            if entry.users == 0:
                held -= entry.bytes
                self._drop(path)

    def _drop(self, path: Path) -> None:
        entry = self._open.pop(path)
        if entry.users:
            self._dropped.append(entry)
        else:
            entry.slide.close()

    def _bytes_of(self, slide: Slide) -> int:
        if not isinstance(slide, FlatSlide):
            return self._cache_bytes
        needed = slide.dimensions[0] * slide.dimensions[1] * _FLAT_BYTES_A_PIXEL
        if needed > self._most_bytes:
            slide.close()
            raise SlideError("is too large to be shown from a flat image; convert it to a tiled pyramidal TIFF")
        return needed


def _close_all(opened: OrderedDict[Path, _Open]) -> None:
    for entry in opened.values():
        entry.slide.close()


def _seen(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced: its size and when it was written; raises ``SlideError`` without a file."""
    try:
        found = path.stat()
    except OSError as error:
        raise SlideError("the file does not exist") from error
    return found.st_size, found.st_mtime_ns
