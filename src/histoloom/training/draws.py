"""The random numbers of a step, drawn on the CPU while a GPU computes the step before.

A step asks for the same numbers, in the same order, as the step before it. So they are drawn ahead, from the next
step's own stream. Where a step asks for others after all, its stream is brought to where it would be and goes on from
there: what a step gets does not depend on what was drawn ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from histoloom.training.transfers import background_thread, pins

Stream = Callable[[str, int], torch.Generator]
"""The stream of an objective's step, at its start."""


class Request(NamedTuple):
    """``kind``: normal, uniform, or whole numbers below ``high``; ``shape``: of the whole batch."""

    kind: str
    shape: tuple[int, ...]
    high: int = 0


Drawn = list[tuple[Request, Tensor]]


def draw(request: Request, generator: torch.Generator, *, pin: bool) -> Tensor:
    """The next numbers of a stream, on the CPU; ``pin``: in pinned memory."""
    if request.kind == "randint":
        return torch.randint(request.high, request.shape, generator=generator, pin_memory=pin)
    function = torch.randn if request.kind == "randn" else torch.rand
    return function(request.shape, generator=generator, pin_memory=pin)


class StepDraws:
    """What one objective draws in a step, in order; ``ahead``: what is drawn already, or soon."""

    def __init__(self, generator: torch.Generator, *, ahead: Future[Drawn] | None = None) -> None:
        self.requests: list[Request] = []
        self._generator = generator
        self._ahead = ahead

    def take(self, request: Request) -> Tensor:
        """The next numbers."""
        number = len(self.requests)
        if self._ahead is not None:
            drawn = self._ahead.result()
            if number < len(drawn) and drawn[number][0] == request:
                self.requests.append(request)
                return drawn[number][1]
        numbers = draw(request, self.stream(), pin=True)
        self.requests.append(request)
        return numbers

    def stream(self) -> torch.Generator:
        """The stream after what was taken; from here on nothing is taken of what was drawn ahead."""
        if self._ahead is not None:
            for request in self.requests:
                draw(request, self._generator, pin=False)
            self._ahead = None
        return self._generator


@contextmanager
def drawing_ahead(stream: Stream, *, device: torch.device) -> Iterator[DrawAhead | None]:
    """Within it, draws are made ahead where ``device`` is a GPU; elsewhere None: the CPU has the step to compute."""
    if not pins(device):
        yield None
        return
    with background_thread(device) as pool:
        yield DrawAhead(stream, pool=pool)


class DrawAhead:
    """Draws for the next step on the thread of ``pool``."""

    def __init__(self, stream: Stream, *, pool: Executor) -> None:
        self._stream = stream
        self._pool = pool
        self._steps: dict[str, tuple[int, StepDraws]] = {}  # by objective: the latest step, and its first draws
        self._ahead: dict[tuple[str, int], Future[Drawn]] = {}

    def of(self, objective: str, step: int) -> StepDraws:
        """The draws of an objective's step from its start on; starts to draw those of the next step."""
        draws = StepDraws(self._stream(objective, step), ahead=self._ahead.get((objective, step)))
        before = self._steps.get(objective)
        if before is None or before[0] != step:
            self._steps[objective] = (step, draws)
            self._ahead.pop((objective, step - 1), None)
            if before is not None:
                requests = [*before[1].requests]
                self._ahead[objective, step + 1] = self._pool.submit(self._draw, objective, step + 1, requests)
        return draws

    def _draw(self, objective: str, step: int, requests: list[Request]) -> Drawn:
        generator = self._stream(objective, step)
        return [(request, draw(request, generator, pin=True)) for request in requests]
