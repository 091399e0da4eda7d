"""What several processes of one run do together, once they have joined.

With one process, each function returns what it was given.

A loss that is a statistic of the whole batch (an entropy of its mean, a batch normalisation) is computed on the whole
batch by every process, from features that each computed of its own part. Shapes: B rows of this process, P processes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn

Plain = TypeVar("Plain")


def size() -> int:
    """P: how many processes train together."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, 0..P-1."""
    return distributed.get_rank() if _joined() else 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if size() > 1:
        distributed.barrier()


def shared_path(path: Path) -> Path:
    """The first process's path, on every process."""
    return Path(shared(str(path)))


def shared(value: Plain) -> Plain:
    """The first process's value, which can be pickled, on every process."""
    box = [value]
    if size() > 1:
        distributed.broadcast_object_list(box)
    return box[0]


def gathered(x_B: Tensor) -> Tensor:
    """The rows of all processes, (P * B, ...), in the order of the processes; gradients flow to one's own rows.

    These gradients are P times what the rows deserve: every process computes the same loss of the whole batch, and the
    training loop takes the mean over processes of what it gives to each weight.
    """
    if size() == 1:
        return x_B
    whole: Tensor = _Gathered.apply(x_B)
    return whole


def averaged(x: Tensor) -> Tensor:
    """The mean over the processes, without gradient."""
    return summed(x) / size()


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean over the processes, with its gradient: for a statistic of the whole batch inside a network.

    Each process's loss depends on the parts of all, so the gradient that reaches a part is the mean over the processes.
    """
    if size() == 1:
        return x
    mean: Tensor = _Mean.apply(x)
    return mean


def summed(x: Tensor) -> Tensor:
    """The sum over the processes, without gradient."""
    if size() == 1:
        return x.detach()
    total = x.detach().clone()
    distributed.all_reduce(total)
    return total


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the parameters' gradients by their means over the processes."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    mean = averaged(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process works by itself: it is the only one, and nothing waits for the others.

    For work of the main process in which networks are trained, while the other processes wait for it to end.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def end_process(status: int) -> NoReturn:
    """End one of several processes at once, its work done and written.

    The usual way out takes down the interpreter while threads of the group's backend still run, which at times aborts
    a process that has succeeded, and torchrun then counts the whole run as failed.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


_alone = False


def _joined() -> bool:
    return not _alone and distributed.is_available() and distributed.is_initialized()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_B: Tensor) -> Tensor:
        ctx.rows = len(x_B)
        parts = [torch.empty_like(x_B, memory_format=torch.contiguous_format) for _ in range(size())]
        distributed.all_gather(parts, x_B.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return gradient[start : start + ctx.rows] * size()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return averaged(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return averaged(gradient)
