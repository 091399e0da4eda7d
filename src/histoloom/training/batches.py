"""Which rows of the data a step sees, and reading them while the step before computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache

import numpy as np
import torch

from histoloom.seeding import numpy_generator, permutation
from histoloom.training.tasks import Batch, Task
from histoloom.training.transfers import background_thread, pinned, pins, to_device

CPU = torch.device("cpu")


def step_rows(task: Task, *, images: int, batch_size: int, seed: int) -> np.ndarray:
    """The rows of the step that starts at ``images``: consecutive places in a chain of permutations; then versions."""
    places = np.arange(images, images + batch_size)
    rows = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(places // task.n):
        shuffled = _epoch_order(seed, task.name, int(epoch), n=task.n)
        here = places // task.n == epoch
        rows[here] = shuffled[places[here] % task.n]
    if task.versions == 1:
        return rows
    draws = numpy_generator(seed, task.name, "versions", images // batch_size)
    return rows + task.n * draws.integers(task.versions, size=len(rows))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, name: str, epoch: int, *, n: int) -> np.ndarray:
    """The permutation of one epoch, kept: to draw a million numbers takes longer than a step of a small network."""
    shuffled = permutation(seed, name, "order", epoch, n=n)
    shuffled.flags.writeable = False
    return shuffled


class Prefetcher:
    """Reads on a thread of its own; gives batches on ``device``."""

    def __init__(self, read: Callable[[int], list[Batch]], *, device: torch.device = CPU) -> None:
        self._read = read
        self._device = device
        self._next: tuple[int, Future[list[Batch]]] | None = None
        self._pool = background_thread(device)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, images: int, *, then: int) -> list[Batch]:
        """The batches at ``images``; starts to read those at ``then``."""
        ready = self._next is not None and self._next[0] == images
        current = self._next[1] if self._next is not None and ready else self._pool.submit(self._read_pinned, images)
        self._next = (then, self._pool.submit(self._read_pinned, then))
        return to_device(current.result(), self._device)

    def _read_pinned(self, images: int) -> list[Batch]:
        batches = self._read(images)
        return pinned(batches) if pins(self._device) else batches
