"""What a stage is: its name, the part of the configuration that it depends on, its inputs, and what it is given.

The order of the stages is the pipeline's business; this is the vocabulary that the stages share with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoloom.config import Config

logger = logging.getLogger("histoloom")


class EventLog:
    """A stage's ``log.jsonl``: one JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(event), ensure_ascii=False) + "\n")

    def keep(self, events: int) -> None:
        """Cut the log down to its first ``events`` lines: a resumed training rewrites what came after."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)[:events]
            self.path.write_text("".join(lines), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.read())

    def read(self) -> list[dict[str, Any]]:
        """All whole events; a line torn by a crash is left out."""
        if not self.path.is_file():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                logger.warning("%s: a torn line is left out", self.path)
        return events


@dataclass(frozen=True)
class CheckResult:
    """What a look at drawn images found, in words; ``stop``: it is reason to stop a training, ``advice`` what to do."""

    said: str
    stop: bool = False
    advice: str = ""


ImageJudge = Callable[[np.ndarray], CheckResult]
"""Judges drawn images, uint8 (N, H, W, 3)."""


@dataclass(frozen=True)
class StageContext:
    """What a stage is given.

    ``out`` may hold what an interrupted call of the same stage, with the same fingerprint, left there. ``inputs``
    are the published folders of the stages before, by name. ``run`` is the run directory, for what is not a stage
    (the expert's names). ``judge`` looks at what a stage that trains draws on the way, where the run asks for that.
    """

    run: Path
    config: Config
    out: Path
    inputs: Mapping[str, Path]
    log: EventLog
    judge: ImageJudge | None = None

    def say(self, message: str) -> None:
        """Tell the user, and the stage's log, one line."""
        logger.info("%s", message)
        self.log.write({"message": message})
