"""What a training is made of: tasks, objectives, and the context of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from histoloom.config import Phase
from histoloom.run.stage import CheckResult
from histoloom.training.draws import Request, StepDraws, draw
from histoloom.training.transfers import pins, to_device

Batch = Any
Modules = Mapping[str, nn.Module]


@dataclass
class StepContext:
    """One micro-batch's place in the training, and its random numbers.

    Draws are made on the CPU, for the whole step's batch, and sliced, so that they depend neither on the device nor on
    how the batch is split over micro-batches and processes. Nothing waits for their copies to a GPU. ``scratch`` is
    shared by the objectives within the micro-batch. ``draws``: from the same stream, some of them made ahead.
    """

    images: int
    step: int
    progress: float
    device: torch.device
    generator: torch.Generator
    rows: slice
    batch_size: int
    scratch: dict[str, Any] = field(default_factory=dict)
    draws: StepDraws | None = None

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers; the first dimension is the micro-batch."""
        return self._drawn(Request("randn", self._whole(shape)))

    def rand(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers in 0..1; the first dimension is the micro-batch."""
        return self._drawn(Request("rand", self._whole(shape)))

    def randint(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers in 0..high-1 (int64); the first dimension is the micro-batch."""
        return self._drawn(Request("randint", self._whole(shape), high))

    def stream(self) -> torch.Generator:
        """The stream after what was drawn so far, for draws that are not of rows."""
        return self.generator if self.draws is None else self.draws.stream()

    def _drawn(self, request: Request) -> Tensor:
        if self.draws is not None:
            return self._sliced(self.draws.take(request))
        return self._sliced(draw(request, self.generator, pin=pins(self.device)))

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.batch_size, *shape[1:])

    def _sliced(self, whole: Tensor) -> Tensor:
        return to_device(whole[self.rows], self.device)


@dataclass(frozen=True)
class Objective:
    """One optimizer's side of a training; ``loss`` gives a scalar and metrics (detached scalars) to log.

    ``prepare`` gets all micro-batches of a process before the first ``loss`` of a step, if there are several: it
    computes what the loss needs from the whole batch, and leaves its result in the contexts' scratch. ``betas`` are
    Adam's and AdamW's; None: the training's.
    ``lr_setting``: where its learning rate is in a run's configuration; empty: in the phases of the task's training.
    ``rates``: parameters, by the end of their name, with a learning rate so many times the phase's and no decay.
    """

    name: str
    modules: tuple[str, ...]
    loss: Callable[[Batch, StepContext], tuple[Tensor, dict[str, Tensor]]]
    phases: tuple[Phase, ...]
    starts_at: int = 0
    prepare: Callable[[Sequence[Batch], Sequence[StepContext]], None] | None = None
    betas: tuple[float, float] | None = None
    lr_setting: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Callback:
    """A check of the networks at ``times`` equally distant points of a training, which may stop it.

    ``check`` gets the modules (averaged ones where there are such) and the images seen. It must not change them, nor
    draw from random streams that are not its own.
    """

    check: Callable[[Modules, int], CheckResult]
    times: int


@dataclass(frozen=True)
class Task:
    """What is trained: modules by name, objectives, and ``n`` items of data that ``batch(rows)`` reads (CPU tensors).

    ``versions``: an item comes in so many, of which one is drawn each time it is seen; ``batch`` then reads the
    row ``item + n * version``, and 0 is the item as it is.
    ``compiled``: networks that may be compiled while they train: each is differentiated as a whole.
    ``whole_batch``: the loss is a statistic of the whole batch, which processes may share but micro-batches must not
    split.
    ``setting``: where the training is in a run's configuration, such as ``diffusion.training``; empty: nowhere.
    """

    name: str
    modules: Mapping[str, nn.Module]
    objectives: tuple[Objective, ...]
    n: int
    batch: Callable[[np.ndarray], Batch]
    ema: tuple[str, ...] = ()
    whole_batch: bool = False
    versions: int = 1
    compiled: tuple[nn.Module, ...] = ()
    callback: Callback | None = None
    setting: str = ""


@dataclass(frozen=True)
class Trained:
    """The modules after training, in evaluation mode; averaged weights where the task asks for them."""

    modules: Modules
    images: int
