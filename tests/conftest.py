"""What tests share: where the real data lies, and tiny settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors do not gain from threads, and the machine has other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("HISTOLOOM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set HISTOLOOM_TEST_DATA")
    return folder
