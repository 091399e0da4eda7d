"""Copies to a GPU that the CPU does not wait for, and data that lies on the GPU while a network trains.

A plain ``tensor.to("cuda")`` waits until the GPU has done all that it was given. A non-blocking copy out of pinned
memory (pages that the system does not move) waits for nothing. On other devices all of this changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("histoloom")

Tensors = TypeVar("Tensors")

ROWS_AT_ONCE = 1024
HELD_SHARE = 0.4
"""of the free memory of a GPU that held data may take; the rest is for networks, gradients and activations"""


def pins(device: torch.device) -> bool:
    """Whether memory that is copied to ``device`` should be pinned."""
    return device.type == "cuda"


def pinned(batch: Tensors) -> Tensors:
    """The same tensors (one, or nested tuples and lists of them) in pinned memory."""
    return _mapped(batch, lambda x: x.pin_memory())


def to_device(batch: Tensors, device: torch.device) -> Tensors:
    """The same tensors (one, or nested tuples and lists of them) on ``device``; waits only for unpinned memory."""
    return _mapped(batch, lambda x: x.to(device, non_blocking=pins(device)))


def put_array(values: np.ndarray, device: torch.device) -> Tensor:
    """The values of an array on ``device``, by way of pinned memory where that saves a wait."""
    x = torch.from_numpy(values)
    return to_device(pinned(x) if pins(device) else x, device)


def _mapped(batch: Tensors, function: Callable[[Tensor], Tensor]) -> Tensors:
    if isinstance(batch, Tensor):
        return function(batch)  # type: ignore[return-value]
    if isinstance(batch, tuple | list):
        return type(batch)(_mapped(part, function) for part in batch)
    return batch


def background_thread(device: torch.device) -> ThreadPoolExecutor:
    """A thread that prepares data for ``device``, and computes with one thread.

    Two teams of OpenMP threads on all cores would be more threads than there are cores, upon which GNU's OpenMP stops
    to spin between parallel regions, for both: a training of a small network on two cores then ran at 0.6 of its speed.
    """
    gpu = torch.cuda.current_device() if pins(device) else None  # a thread begins with the first one

    def begin() -> None:
        torch.set_num_threads(1)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    # Threads that start later have as many threads as this one, so the number is set back once the pool's runs.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=1, initializer=begin)
    pool.submit(torch.get_num_threads).result()
    torch.set_num_threads(threads)
    return pool


@dataclass(frozen=True)
class HeldRows:
    """Rows of data that lie on the GPU for a whole training, gathered by index there.

    ``dtype``: of the rows that are given; they may be held in half precision.
    """

    values_N: Tensor
    dtype: torch.dtype

    def __call__(self, rows_B: Tensor) -> Tensor:
        """The rows of these numbers, (B, ...)."""
        return self.values_N[rows_B].to(self.dtype)


def hold(read: Callable[[np.ndarray], Tensor], *, n: int, device: torch.device) -> HeldRows | None:
    """The ``n`` rows that ``read`` gives, on ``device``; in half precision where they do not fit in single precision.

    None where it is no CUDA device, whose memory is another than the CPU's, and where they do not fit beside a network.
    """
    if device.type != "cuda" or not n:
        return None
    first_1 = read(np.arange(1))
    free, _ = torch.cuda.mem_get_info(device)
    kinds = [first_1.dtype, torch.float16] if first_1.dtype == torch.float32 else [first_1.dtype]
    fitting = [kind for kind in kinds if n * first_1.numel() * kind.itemsize <= HELD_SHARE * free]
    if not fitting:
        return None
    if fitting[0] != first_1.dtype:
        logger.info("the memory of %s holds the data of this training in half precision", device)
    values_N = torch.empty((n, *first_1.shape[1:]), dtype=fitting[0], device=device)
    for start in range(0, n, ROWS_AT_ONCE):
        rows_n = np.arange(start, min(start + ROWS_AT_ONCE, n))
        values_N[start : start + len(rows_n)] = read(rows_n).to(device)
    return HeldRows(values_N, first_1.dtype)
