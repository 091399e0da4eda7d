"""When a training has gone wrong: numbers that are no longer finite, or a loss that exploded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

EXPLODED = 1000.0
"""A loss so many times that of the untrained network has left for good, finite or not."""

LEAST_FIRST = 0.01
"""A first loss below this is taken as this: one that begins at zero says nothing of its scale."""


def divergence(
    means: Mapping[str, float], *, modules: Iterable[tuple[str, nn.Module]], first: Mapping[str, float]
) -> tuple[str, str] | None:
    """What is wrong with a training, in words, and in which objective or module; None where nothing is.

    ``means`` are its logged numbers, by OBJECTIVE.NAME; ``first`` those of the first ones that are losses.
    """
    for name, value in means.items():
        if not math.isfinite(value):
            return f"{name} is no longer finite", name.partition(".")[0]
    for name, module in modules:
        if not _is_finite(module):
            return f"a weight of {name} is no longer finite", name
    for name, value in first.items():
        if abs(means.get(name, 0.0)) > EXPLODED * max(abs(value), LEAST_FIRST):
            return f"{name} exploded: {means[name]:.3g}, {value:.3g} at the start", name.partition(".")[0]
    return None


def _is_finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are: a norm of many numbers is finite only where all of them are."""
    numbers: list[Tensor] = [*module.parameters(), *module.buffers()]
    values = [value.detach() for value in numbers if value.is_floating_point()]
    return not values or bool(torch.stack(torch._foreach_norm(values)).isfinite().all())
