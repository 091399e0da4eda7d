"""Checks of a network while it trains, which may stop the training: when one is due, and what all processes hear of it.

A check changes nothing of the training: it draws its own random numbers and sees the networks as they are.
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
"""beside last.pt: the checkpoint of the last check that found nothing wrong"""


def is_due(callback: Callback | None, *, step: int, steps: int) -> bool:
    """Whether a check follows step ``step`` of ``steps``: at equal distances, the last one at the end."""
    return callback is not None and step * callback.times // steps > (step - 1) * callback.times // steps


def run_check(task: Task, modules: Modules, *, images: int, checkpoint: Path, log: EventLog) -> None:
    """The main process checks; ``TrainingStopped``, on all processes, where the result asks for it."""
    assert task.callback is not None, "a check is due"
    result = distributed.shared(task.callback.check(modules, images) if distributed.rank() == 0 else None)
    assert result is not None, "the main process has checked"
    if distributed.rank() == 0:
        logger.info("%s: %s", task.name, result.message)
        log.write({"message": result.message})
    if result.stop:
        good = checkpoint.with_name(GOOD)
        kept = f"the last good checkpoint is {good}" if good.exists() else "no check before this one was good"
        raise TrainingStopped(f"{task.name}: {result.message} after {images:,} images; {kept}; {result.advice}")


def keep_good(checkpoint: Path) -> None:
    """Keep a copy of the checkpoint as the last good one; the main process's work."""
    if distributed.rank() == 0:
        with replacing(checkpoint.with_name(GOOD)) as temporary:
            shutil.copyfile(checkpoint, temporary)
