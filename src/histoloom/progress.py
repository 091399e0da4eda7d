"""Progress with the time left: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from histoloom.processes import is_main_process

logger = logging.getLogger("histoloom")

LINE_SECONDS = 30.0


class Meter:
    """Counts what is done; on a terminal it draws a bar, elsewhere it logs a line every ``LINE_SECONDS``."""

    def __init__(self, description: str, *, total: int, done: int = 0) -> None:
        self.description = description
        self.total = total
        self.done = done
        self._first = done
        self._started = self._spoke = time.monotonic()
        self._bar: Progress | None = None
        self._note = ""

    def advance(self, by: int, *, note: str = "") -> None:
        """Count ``by`` more; ``note`` is a short text to show beside."""
        self.done = min(self.total, self.done + by)
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=self._note)
        elif is_main_process() and time.monotonic() - self._spoke > LINE_SECONDS:
            self._spoke = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """The state as one line."""
        rate = (self.done - self._first) / max(1e-9, time.monotonic() - self._started)
        left = (self.total - self.done) / rate if rate else 0.0
        return f"{self.description}: {self.done:,} of {self.total:,}, {left / 60:.1f} min left {self._note}".rstrip()

    def draw_on(self, bar: Progress) -> None:
        """Draw on a terminal from now on."""
        self._bar = bar
        bar.add_task(self.description, total=self.total, completed=self.done, note="")


@contextmanager
def meter(description: str, *, total: int, done: int = 0) -> Iterator[Meter]:
    """A ``Meter`` for the time of the ``with`` block."""
    counter = Meter(description, total=total, done=done)
    if not sys.stderr.isatty() or not is_main_process():
        yield counter
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        counter.draw_on(bar)
        yield counter
