"""Checkpoints that do not stop the training: the state is copied, and a thread writes the copy.

The training changes its tensors in place, so the copy is of the moment of the call. On a GPU it goes to pinned memory,
in the order of the GPU's work, and the thread waits for it, not the training.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from histoloom.run.directory import write_bytes
from histoloom.training.transfers import background_thread, pins

logger = logging.getLogger("histoloom")

State = Mapping[str, object]
"""Modules, optimizers and numbers: tensors in dictionaries, lists and tuples at any depth."""


def write_checkpoint(path: Path, state: State) -> None:
    """Write ``state``, through memory: torch's own writer hides from us why a write failed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


class CheckpointWriter:
    """Writes checkpoints to ``path``, one at a time; within ``with``, whose end waits for the last one.

    ``at_once``: the training waits for each, and nothing is copied.
    """

    def __init__(self, path: Path, *, device: torch.device, at_once: bool) -> None:
        self.path = path
        self._device = device
        self._at_once = at_once
        self._writing: Future[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        with self._stack:  # its end waits for the thread
            if error is None:
                self.wait()
        if self._writing is not None and (lost := self._writing.exception()) is not None:
            logger.warning("the last checkpoint was not written: %s", lost)
        self._writing = self._pool = None

    def write(self, state: State) -> None:
        """Write ``state`` as it is now; waits for the checkpoint before, and raises its error."""
        self.wait()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._at_once:
            write_checkpoint(self.path, state)
            return
        if self._pool is None:
            self._pool = self._stack.enter_context(background_thread(self._device))
        copied = copy_state(state)
        arrived = None
        if pins(self._device):
            arrived = torch.cuda.Event()
            arrived.record()
        self._writing = self._pool.submit(self._write_copy, copied, arrived)

    def _write_copy(self, copied: State, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        write_checkpoint(self.path, copied)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk; raises what kept it from there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def raise_error(self) -> None:
        """Raise what kept the last checkpoint from the disk, where that is known already."""
        if self._writing is not None and self._writing.done():
            self.wait()


def copy_state(state: State) -> State:
    """A copy on the CPU that later changes of ``state`` leave alone; from a GPU it arrives in the GPU's order of work.

    Tensors that share memory on the CPU share it in the copy.
    """
    # A copy without waiting lies in pinned memory, which torch keeps for the next checkpoint.
    memo = {id(x): x.to("cpu", non_blocking=pins(x.device)) for x in _tensors(state) if x.device.type != "cpu"}
    return copy.deepcopy(state, memo)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
