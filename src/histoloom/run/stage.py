"""What a stage is: its name, the part of the configuration that it depends on, its inputs, and what it is given.

The order of the stages is the pipeline's business; this is the vocabulary that the stages share with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from histoloom.config import Config
from histoloom.names.corrections import CorrectedTissues
from histoloom.run.directory import write_text
from histoloom.run.json_lines import append_lines, read_lines

logger = logging.getLogger("histoloom")


class EventLog:
    """A stage's ``log.jsonl``: messages and training curves, one JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: Mapping[str, object]) -> None:
        """Append one event."""
        append_lines(self.path, [event], flush=False)

    def keep(self, events: int) -> None:
        """Cut the log down to its first ``events`` whole events: a resumed training writes the later ones again."""
        if self.path.is_file():
            lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in self.read()[:events]]
            write_text(self.path, "".join(lines))

    def __len__(self) -> int:
        return len(self.read())

    def read(self) -> list[dict[str, object]]:
        """All whole events; a line torn by a crash is left out."""
        return read_lines(self.path)


@dataclass(frozen=True)
class CheckResult:
    """What a check found, as a ``message``; ``stop``: the training shall stop; ``advice``: what to do then."""

    message: str
    stop: bool = False
    advice: str = ""


ImageCheck = Callable[[np.ndarray], CheckResult]
"""Checks generated images, uint8 (N, H, W, 3)."""


@dataclass(frozen=True)
class StageContext:
    """What a stage is given.

    ``out`` may hold what an interrupted call of the same stage, with the same fingerprint, left there. ``inputs``
    are the published folders of the stages before, by name. ``run`` is the run directory, for what is not a stage
    (the expert's names). ``image_check`` checks images that a stage generates while it trains, where the run asks for
    that. ``corrections``: those of single patches that the stage uses, by k.
    """

    run: Path
    config: Config
    out: Path
    inputs: Mapping[str, Path]
    log: EventLog
    image_check: ImageCheck | None = None
    corrections: Mapping[int, CorrectedTissues] = field(default_factory=dict)

    def say(self, message: str) -> None:
        """Tell the user, and the stage's log, one line."""
        logger.info("%s", message)
        self.log.write({"message": message})
