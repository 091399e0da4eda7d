"""A look at a network while it trains, which may stop the training: when it is due, and what every process hears of it.

A look changes nothing of the training: it draws its own random numbers and sees the networks as they are.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from histoloom.errors import TrainingStopped
from histoloom.run.directory import replacing
from histoloom.run.stage import EventLog
from histoloom.training import distributed
from histoloom.training.tasks import Callback, Modules, Task

logger = logging.getLogger("histoloom")

GOOD = "good.pt"
"""beside last.pt: the checkpoint of the last look that found nothing wrong"""


def is_due(watch: Callback | None, *, step: int, steps: int) -> bool:
    """Whether a look follows step ``step`` of ``steps``: at equal distances, the last one at the end."""
    return watch is not None and step * watch.times // steps > (step - 1) * watch.times // steps


def look(task: Task, modules: Modules, *, images: int, checkpoint: Path, log: EventLog) -> None:
    """The main process looks; ``TrainingStopped``, on all processes, where what it sees is reason to."""
    assert task.watch is not None, "a look is due"
    found = distributed.shared(task.watch.look(modules, images) if distributed.rank() == 0 else None)
    assert found is not None, "the main process looked"
    if distributed.rank() == 0:
        logger.info("%s: %s", task.name, found.said)
        log.write({"message": found.said})
    if found.stop:
        good = checkpoint.with_name(GOOD)
        kept = f"the last good checkpoint is {good}" if good.exists() else "no look before this one was good"
        raise TrainingStopped(f"{task.name}: {found.said} after {images:,} images; {kept}; {found.advice}")


def keep_good(checkpoint: Path) -> None:
    """Keep a copy of the checkpoint as the last good one; the main process's work."""
    if distributed.rank() == 0:
        with replacing(checkpoint.with_name(GOOD)) as temporary:
            shutil.copyfile(checkpoint, temporary)
