"""The report says whether there is evidence of clusters, with its numbers."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.atlas.report.null_table import null_rows
from histoloom.atlas.report.page import render
from histoloom.atlas.report.read_run import STAGES, RunReader
from histoloom.clustering.validity.decision import choose_with_nulls, with_evidence
from histoloom.clustering.validity.index_vote import Choice
from histoloom.run.directory import Run, read_json, write_json
from histoloom.seeding import numpy_generator

KS = (2, 4)


def features(*, apart: float) -> np.ndarray:
    """160 points in six dimensions, in four groups that are ``apart``."""
    noise_ND = numpy_generator(0, "features").standard_normal((160, 6))
    return noise_ND + apart * np.eye(6)[np.arange(160) % 4]


def report(run: Run, *, apart: float) -> str:
    """The page of a run whose choice of k is made on these features."""
    path = run.folder("clusters") / "choice.json"
    old = read_json(path)
    plain = Choice(**{name: old.get(name) for name in Choice.__dataclass_fields__})
    evidence = choose_with_nulls(features(apart=apart), ks=KS, seed=0, draws=6, points=160)
    write_json(path, with_evidence(plain, evidence=evidence) | {"restarts": {"2": [0.5, 0.75], "4": [0.25, 1.0]}})
    inputs = {stage: run.folder(stage) for stage in STAGES}
    return render(RunReader(run.path, config=run.config, inputs=inputs, maps=run.folder("report") / "maps").page())


def test_structureless_features_are_called_so(finished: Run) -> None:
    page = report(finished, apart=0.0)
    assert page.count("No evidence of clusters") >= 2, "in the summary and beside the table"
    assert "k = 4 is taken by the plain rule" in page
    assert "k-means on this run's features against k-means on data without clusters" in page
    assert "no: 0 of 5 indices better than without clusters" in page


def test_separated_features_are_called_clusters(finished: Run) -> None:
    page = report(finished, apart=12.0)
    assert "Evidence of clusters: at k = 4, " in page
    assert "No evidence of clusters" not in page
    assert "0.25 to 1.00" in page


def test_rows_hold_the_least_excess_and_mark_what_is_clear(finished: Run) -> None:
    report(finished, apart=12.0)
    choice = read_json(finished.folder("clusters") / "choice.json")
    rows = null_rows(choice)
    assert [(row.k, row.chosen) for row in rows] == [(2, False), (4, True)]
    for row, found in zip(rows, choice["nulls"], strict=True):
        for cell, compared in zip(row.excess, found["indices"].values(), strict=True):
            assert cell.low == min(excess["low"] for excess in compared["excess"].values())
            assert cell.clear == (cell.low > 0)
        assert row.weakest.real == pytest.approx(found["stability"]["weakest"]["real"])


def test_a_choice_of_an_earlier_version_has_no_rows() -> None:
    assert null_rows({"k": 4}) == []
