"""What stops a training: numbers that are no longer finite, a loss that exploded, or the task's own check.

A check changes nothing of the training: it draws its own random numbers and sees the networks as they are.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from histoloom.errors import TrainingStopped
from histoloom.run.directory import replacing
from histoloom.run.stage import EventLog
from histoloom.training import distributed
from histoloom.training.tasks import Callback, Modules, Task

logger = logging.getLogger("histoloom")

EXPLODED = 1000.0
"""A loss so many times that of the untrained network does not come back, finite or not."""

MIN_FIRST_LOSS = 0.01
"""A first loss below this counts as this: one that starts at zero gives no scale."""

GOOD = "good.pt"
"""beside last.pt: the checkpoint of the last check that did not stop the training"""


class Divergence(NamedTuple):
    """``name`` of the metric (OBJECTIVE.METRIC) or the module that diverged, and a sentence about it."""

    name: str
    message: str


def find_divergence(
    means: Mapping[str, float], *, modules: Iterable[tuple[str, nn.Module]], first: Mapping[str, float]
) -> Divergence | None:
    """What has diverged, or None; ``means`` are the logged numbers, ``first`` the first losses."""
    for name, value in means.items():
        if not math.isfinite(value):
            return Divergence(name, f"{name} is no longer finite")
    for name, module in modules:
        # The norm of many numbers is finite only where all of them are.
        values = [value.detach() for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]
        if values and not torch.stack(torch._foreach_norm(values)).isfinite().all():
            return Divergence(name, f"a weight of {name} is no longer finite")
    for name, value in first.items():
        if abs(means.get(name, 0.0)) > EXPLODED * max(abs(value), MIN_FIRST_LOSS):
            return Divergence(name, f"{name} exploded: {means[name]:.3g}, {value:.3g} at the start")
    return None


def is_due(callback: Callback | None, *, step: int, steps: int) -> bool:
    """Whether a check follows step ``step`` of ``steps``: at equal distances, the last one at the end."""
    return callback is not None and step * callback.times // steps > (step - 1) * callback.times // steps


def run_check(task: Task, modules: Modules, *, images: int, checkpoint: Path, log: EventLog) -> None:
    """The main process checks; ``TrainingStopped``, on all processes, where the result says so."""
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
