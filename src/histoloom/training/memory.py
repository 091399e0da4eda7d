"""What happens where the device's memory does not suffice: inference continues in smaller parts, a training says how.

Parts give the same numbers as the whole to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from histoloom.errors import UserError

logger = logging.getLogger("histoloom")

Batch = TypeVar("Batch", Tensor, np.ndarray, list)
R = TypeVar("R")

_largest: dict[str, int] = {}
"""By name of the work: the largest part that fitted, once one did not."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the memory of a GPU, or of the CPU, is full."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and should_reduce_batch_size(error)
    )


def in_fitting_parts(compute: Callable[[Batch], R], batch: Batch, *, name: str) -> list[R]:
    """``compute`` of the batch as one part, or of halves, quarters and so on of it, where memory is full.

    The size that fitted is kept for later calls with the same ``name``, words for what is computed. ``UserError`` where
    a single item does not fit. An empty batch is one empty part.
    """
    size = max(1, min(len(batch), _largest.get(name, len(batch))))
    parts: list[R] = []
    start = 0
    while start < len(batch) or not parts:
        try:
            parts.append(compute(batch[start : start + size]))
            start += size
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError(
                    f"{name}: the device's memory is full, even for a single one ({_first_sentence(error)}); end other "
                    "programs that use the device, or use --set runtime.device=cpu"
                ) from error
        # Outside the handler: the error holds the frames, and they the tensors, of what did not fit.
        clear_device_cache()
        size = size // 2
        _largest[name] = size
        logger.info("%s: the device's memory is full; continuing with %d at once", name, size)
    return parts


def out_of_memory_advice(error: RuntimeError, *, task: str, accumulate: int | None, setting: str) -> str:
    """The line for a training whose step does not fit; ``accumulate``: what to try next, None: nothing smaller."""
    if accumulate is not None:
        advice = f"continue with --set runtime.accumulate={accumulate}, or with runtime.accumulate=auto, which finds it"
    else:
        smaller = f"start a run with a smaller {setting}.batch_size, or " if setting else ""
        advice = f"{smaller}use --set runtime.device=cpu"
    return f"{task}: a training step does not fit into the device's memory ({_first_sentence(error)}); {advice}"


def next_accumulate(accumulate: int, *, batch_size: int, processes: int) -> int | None:
    """The next number of micro-batches, at least twice as many, that divides each process's batch; None: no more."""
    own = batch_size // processes
    return next((parts for parts in range(2 * accumulate, own + 1) if own % parts == 0), None)


def _first_sentence(error: BaseException) -> str:
    return str(error).splitlines()[0].split(". ")[0]
