"""The samples' table follows the names that are given on the page, a moment after the last of them.

Writing 100,000 rows at every keystroke would be too much; a run that is brought up to date does it as well.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from histoloom.errors import UserError
from histoloom.names import refresh_sample_names

logger = logging.getLogger("histoloom")

SECONDS = 3.0


class SampleNames:
    """Brings ``samples/metadata.csv`` up to date ``SECONDS`` after the last call of ``soon``."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._timer: threading.Timer | None = None
        self._guard = threading.Lock()

    def soon(self) -> None:
        """Something changed."""
        with self._guard:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(SECONDS, self._refresh)
            self._timer.start()

    def _refresh(self) -> None:
        try:
            refresh_sample_names(self.run)
        except (UserError, OSError, KeyError, ValueError) as error:
            logger.warning("the names in the samples' table are not up to date: %s", error)
