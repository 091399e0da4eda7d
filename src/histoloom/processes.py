"""The processes that torchrun started together, as the environment names them: known before torch is loaded."""

from __future__ import annotations

import os


def process_count() -> int:
    """Processes that were started together, also before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that writes and reports, also before the processes have joined."""
    return int(os.environ.get("RANK", "0")) == 0
