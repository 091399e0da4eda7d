"""Processes that tests start, wait for and kill, forked from one that has imported everything already.

Starting an interpreter and importing torch, diffusers and scikit-learn takes about ten seconds of a core, longer than
what most tests run. A forked process is as much a process of its own: it can be killed, and shares nothing with others.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PRELOADED = (
    "histoloom.slides.stage",
    "histoloom.autoencoder.stage",
    "histoloom.clustering.stage",
    "histoloom.diffusion.stage",
    "histoloom.diffusion.samples_stage",
    "histoloom.evaluation.stage",
    "histoloom.atlas.stage",
    "histoloom.cli.app",
    "torch.distributed",
)
Finished = subprocess.CompletedProcess[str]
_context = multiprocessing.get_context("forkserver")


class Forked:
    """A process that runs a command: ``histoloom`` with its arguments, or the path of a script with its own."""

    def __init__(self, *command: str | Path, **environment: str) -> None:
        _context.set_forkserver_preload(list(PRELOADED))
        self.command = [str(part) for part in command]
        self._out, self._errors = tempfile.NamedTemporaryFile(), tempfile.NamedTemporaryFile()  # noqa: SIM115
        files = (self._out.name, self._errors.name)
        self.process = _context.Process(target=_run, args=(self.command, files, {**os.environ, **environment}))
        self.process.start()

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached``, then kill it with a signal that it cannot catch; does nothing once it has ended."""
        while self.process.is_alive() and not reached():
            time.sleep(0.002)
        self.process.kill()
        self.process.join()

    def finish(self, *, timeout: float = 280) -> Finished:
        """Wait for its end; what it printed, and its exit status, negative where a signal ended it."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"{self.command} still runs after {timeout} s"
        texts = [Path(file.name).read_text() for file in (self._out, self._errors)]
        return subprocess.CompletedProcess(self.command, self.process.exitcode, *texts)


def run_forked(*command: str | Path, **environment: str) -> Finished:
    """Run a command in a process of its own to its end."""
    return Forked(*command, **environment).finish()


def start_together(count: int, *command: str | Path) -> list[Forked]:
    """Start ``count`` processes that work on the command together, in the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [Forked(*command, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(count)]


def _run(command: list[str], files: tuple[str, str], environment: dict[str, str]) -> None:
    for descriptor, name in enumerate(files, start=1):
        with Path(name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    if command[0] == "histoloom":
        from histoloom.cli import main

        main()
    else:
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
