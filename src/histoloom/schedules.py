"""Where a training stands in its phases, and the learning rate there. The clock is images seen."""

from __future__ import annotations

import math

from histoloom.config import Phase, TrainingConfig


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
