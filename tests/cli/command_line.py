"""The command line of Histoloom, called by tests as a user calls it."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from histoloom.cli import main

Finished = subprocess.CompletedProcess[str]
ENVIRONMENT = {"COLUMNS": "200"}


def histoloom(*arguments: str | Path) -> Finished:
    """Run a command in this process, where torch is imported already: what it prints, and its exit status."""
    out, errors, command = io.StringIO(), io.StringIO(), ["histoloom", *map(str, arguments)]
    status: object = None
    with redirect_stdout(out), redirect_stderr(errors), pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", command)
        for name, value in ENVIRONMENT.items():
            patched.setenv(name, value)
        # As in a process that has just started: the command sets logging up, and writes to these streams.
        patched.setattr(logging.root, "handlers", [])
        patched.setattr(logging.root, "level", logging.WARNING)
        patched.setattr(logging.getLogger("histoloom"), "level", logging.NOTSET)
        try:
            main()
        except SystemExit as stop:
            status = stop.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(command, status, out.getvalue(), errors.getvalue())


def histoloom_process(*arguments: str | Path, **options: object) -> Finished:
    """Run a command in a process of its own; ``options`` of ``subprocess.run``."""
    command = [sys.executable, "-m", "histoloom", *map(str, arguments)]
    env = os.environ | ENVIRONMENT
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=env, **options)  # type: ignore[call-overload]
