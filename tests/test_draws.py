"""Random numbers that are drawn ahead are those of the step itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor

from histoloom.training import draws
from histoloom.training.draws import DrawAhead
from histoloom.training.tasks import StepContext

STEPS, ROWS = 6, 5


def stream(objective: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 * step + len(objective))


def context(step: int, *, ahead: DrawAhead | None, rows: slice) -> StepContext:
    drawn = None if ahead is None else ahead.of("network", step)
    return StepContext(0, step, 0.5, torch.device("cpu"), stream("network", step), rows, ROWS, draws=drawn)


def usual(context: StepContext) -> list[Tensor]:
    n = context.rows.stop - context.rows.start
    return [context.randn((n, 3)), context.randint(7, (n,)), context.rand((n, 2, 2))]


def other_in_some_steps(context: StepContext) -> list[Tensor]:
    if context.step == 3:
        return [context.randn((5, 3)), context.rand((5,)), context.randn((5, 4))]
    return usual(context)


def with_the_stream(context: StepContext) -> list[Tensor]:
    first = context.randint(7, (5,))
    return [first, torch.randint(9, (4,), generator=context.stream()), *usual(context)]


@pytest.mark.parametrize(
    ("asks", "rows"),
    [
        (usual, slice(0, 5)),
        (usual, slice(2, 4)),
        (other_in_some_steps, slice(0, 5)),
        (with_the_stream, slice(0, 5)),
    ],
)
def test_a_step_gets_the_same_numbers(asks: Callable[[StepContext], list[Tensor]], rows: slice) -> None:
    with fake_cuda(), ThreadPoolExecutor(1) as pool:
        ahead = DrawAhead(stream, pool=pool)
        for step in range(STEPS):
            for _ in range(2):  # as micro-batches do
                drawn = asks(context(step, ahead=ahead, rows=rows))
                expected = asks(context(step, ahead=None, rows=rows))
                assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


def test_from_the_third_step_on_they_are_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(), ThreadPoolExecutor(1) as pool:
        ahead = DrawAhead(stream, pool=pool)
        for step in range(2):
            usual(context(step, ahead=ahead, rows=slice(0, 5)))
        pool.submit(int).result()  # what step 1 ordered is done
        third = context(2, ahead=ahead, rows=slice(0, 5))
        pool.submit(int).result()
        monkeypatch.setattr(draws, "draw", lambda *_, **__: pytest.fail("drawn while the step waits"))
        usual(third)
