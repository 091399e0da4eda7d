"""A run as the names see it: a folder with a clustering that has a fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from histoloom.run.directory import write_json

SIZES = {3: [50, 30, 20], 5: [40, 20, 20, 15, 5]}


@pytest.fixture
def sizes() -> dict[int, list[int]]:
    return SIZES


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "run", *, fingerprint: str = "f1") -> Path:
        run = tmp_path / name
        cluster(run, fingerprint=fingerprint)
        return run

    return make


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def recluster() -> Callable[..., None]:
    return cluster


def cluster(run: Path, *, fingerprint: str) -> None:
    """Give the run a clustering of this fingerprint."""
    (run / "clusters").mkdir(parents=True, exist_ok=True)
    about = {"stage": "clusters", "format": 1, "fingerprint": fingerprint, "config": {}, "inputs": {}}
    write_json(run / "clusters" / "artifact.json", about | {"seconds": 1.0, "peak_memory_mb": 1.0})
