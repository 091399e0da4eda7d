"""A small finished run with names, to be changed, and readers who answer by rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.reading.folder import Reading
from histoloom.evaluation.reading.plan import Trial
from histoloom.evaluation.reading.session import Session
from histoloom.names import add_name
from histoloom.run.directory import Run

Rule = Callable[[Trial], int]
Read = Callable[..., Session]


@pytest.fixture
def run(tmp_path: Path, tiny_run: Path) -> Run:
    """A copy of the tiny run in which every cluster of the chosen k has a name of its own."""
    copy = Run.open(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    k = Clustering.open(copy.folder("clusters")).chosen
    for cluster in range(k):
        add_name(copy.path, cluster=cluster, name=f"tissue {'abc'[cluster]}", k=k, rater="Ann")
    return copy


@pytest.fixture
def read() -> Read:
    """``read(reading, reader, rule, n)``: answers the next ``n`` pictures (None: all) by ``rule`` of the truth."""

    def by_rule(reading: Reading, reader: str, rule: Rule, n: int | None = None) -> Session:
        session = Session.open(reading, reader=reader)
        left = len(reading.plan.trials) if n is None else n
        while left and (trial := session.progress().trial) is not None:
            session.answer(
                session.tokens[trial],
                answer=rule(reading.plan.trials[trial]),
                seconds=2.5,
                at_most=None,
                scaling="smooth",
            )
            left -= 1
        return session

    return by_rule
