"""Reading the next step's batches while this one computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from histoloom.training.tasks import Batch


class Prefetcher:
    """Reads on a thread of its own, which computes with one thread.

    Two teams of OpenMP threads on all cores would be more threads than there are cores, upon which GNU's OpenMP stops
    to spin between parallel regions, for both: a training of a small network on two cores then ran at 0.6 of its speed.
    """

    def __init__(self, read: Callable[[int], list[Batch]]) -> None:
        self._read = read
        self._pool = _alone()
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, images: int, *, then: int) -> list[Batch]:
        """The batches at ``images``; starts to read those at ``then``."""
        ready = self._next is not None and self._next[0] == images
        current = self._next[1] if self._next is not None and ready else self._pool.submit(self._read, images)
        self._next = (then, self._pool.submit(self._read, then))
        return current.result()


def _alone() -> ThreadPoolExecutor:
    """One thread on which torch computes with one thread; threads that start later have as many as this one."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,))
    pool.submit(torch.get_num_threads).result()  # it has started
    torch.set_num_threads(threads)
    return pool
