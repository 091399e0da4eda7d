"""Optimizers, what they train, and what changes with a training's progress: phase, learning rate, average's decay.

Progress is counted in images seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from histoloom.config import Phase, TrainingConfig
from histoloom.training.tasks import Objective, Task

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
    """Linear warm-up at the start of the training, cosine decay over the last phase where the settings have it."""
    factor = min(1.0, (images + config.batch_size) / max(config.warmup_images, 1))
    if last and config.lr_decay == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, inside / length)))
    return factor


def average_decay(config: TrainingConfig, *, step: int) -> float:
    """How much of the averaged weights is kept after ``step``, counted from 0; the new weights are the rest.

    A constant, reached from below so that the first weights are soon forgotten.
    """
    return min(config.ema, (1 + step) / (FIRST_EMA_STEPS + step))


def trained_parameters(task: Task, objective: Objective) -> list[nn.Parameter]:
    """The parameters that the objective's optimizer steps."""
    return [p for name in objective.modules for p in task.modules[name].parameters()]


def make_optimizer(
    task: Task, objective: Objective, *, phase: Phase, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """The phase's optimizer: a group with its learning rate, then a group for each of the objective's ``rates``.

    ``betas``: of Adam and AdamW, where the objective has none of its own.
    """
    named = {f"{name}.{key}": p for name in objective.modules for key, p in task.modules[name].named_parameters()}
    special = [[name for name in named if name.endswith(ending)] for ending in objective.rates]
    assert all(special), f"each of {', '.join(objective.rates)} names a parameter"
    selected = {name for names in special for name in names}
    groups: list[dict[str, object]] = [{"params": [p for name, p in named.items() if name not in selected]}]
    groups += [{"params": [named[name] for name in names], "weight_decay": 0.0} for names in special]

    if phase.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, lr=phase.lr)
    kind = torch.optim.Adam if phase.optimizer == "adam" else torch.optim.AdamW
    # A step in one kernel: a third more training steps a second of a small network on a CPU.
    return kind(groups, lr=phase.lr, betas=objective.betas or betas, fused=True)


def other_parameters(task: Task, objective: Objective) -> list[nn.Parameter]:
    """The parameters that only other objectives train."""
    own = {id(p) for p in trained_parameters(task, objective)}
    others = [p for other in task.objectives if other is not objective for p in trained_parameters(task, other)]
    return [p for p in others if id(p) not in own]


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within it, the parameters get no gradient."""
    changed = [p for p in parameters if p.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
