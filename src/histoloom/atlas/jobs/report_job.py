"""Makes a run's report again, in a process of its own: the atlas stays quick, and one is made at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from histoloom.errors import UserError

State = Literal["idle", "running", "done", "failed"]


@dataclass(frozen=True)
class ReportStatus:
    """The state of the last refresh that this program began; ``message`` says why it failed."""

    state: State
    message: str = ""


def report_command(run: Path) -> list[str]:
    """The command that makes the report of ``run`` again."""
    return [sys.executable, "-m", "histoloom", "report", str(run)]


class ReportJob:
    """The refresh of one run's report. Threads may share it."""

    def __init__(self, run: Path, *, command: Sequence[str] = ()) -> None:
        self._command = list(command) or report_command(run)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._status = ReportStatus("idle")

    def status(self) -> ReportStatus:
        """Where the refresh stands."""
        with self._lock:
            return self._status

    def start(self) -> ReportStatus:
        """Begin a refresh; ``UserError`` where one is under way or the process cannot start."""
        with self._lock:
            if self._status.state == "running":
                raise UserError("the report is being made already; wait for it")
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            except OSError as error:
                raise UserError(f"the report cannot be made here: {error.strerror}") from error
            self._status = ReportStatus("running")
            threading.Thread(target=self._wait, args=(self._process,), daemon=True).start()
            return self._status

    def close(self) -> None:
        """End a refresh that is under way; the report of before stays."""
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()

    def _wait(self, process: subprocess.Popen[str]) -> None:
        _, errors = process.communicate()
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        with self._lock:
            if process.returncode == 0:
                self._status = ReportStatus("done")
            else:
                message = lines[-1] if lines else f"the process ended with status {process.returncode}"
                self._status = ReportStatus("failed", message[:500])
