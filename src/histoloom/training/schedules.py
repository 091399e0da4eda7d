"""What changes with a training's progress: its phase, the learning rate there, how its weights are averaged.

The clock is images seen.
"""

from __future__ import annotations

import math

from histoloom.config import Phase, TrainingConfig

FIRST_EMA_STEPS = 10


def phase_at(phases: tuple[Phase, ...], *, images: int, n: int) -> tuple[int, int, int]:
    """The phase at ``images`` seen of ``n`` items of data: its index, the images inside it so far, its length."""
    for index, phase in enumerate(phases):
        length = phase.length(n=n)
        if images < length or index == len(phases) - 1:
            return index, images, length
        images -= length
    raise AssertionError("a training has at least one phase")


def lr_factor(config: TrainingConfig, *, images: int, inside: int, length: int, last: bool) -> float:
    """Linear warm-up at the start of the training, cosine decay over the last phase where it is asked for."""
    factor = min(1.0, (images + config.batch_size) / max(config.warmup_images, 1))
    if last and config.lr_decay == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, inside / length)))
    return factor


def average_decay(config: TrainingConfig, *, step: int) -> float:
    """How much of the averaged weights is kept after ``step``, counted from 0; the new weights are the rest.

    A constant, reached from below so that the first weights are soon forgotten.
    """
    return min(config.ema, (1 + step) / (FIRST_EMA_STEPS + step))
