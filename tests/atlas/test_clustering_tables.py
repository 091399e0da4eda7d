"""The report's tables over k."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.atlas.report.clustering_tables import definition_rows, paper_validity, region_table
from histoloom.atlas.report.page import render
from histoloom.atlas.report.paper import BETTER, INDEX_TITLES, ROWS
from histoloom.atlas.report.read_run import STAGES, read_page
from histoloom.clustering.results import Decision, ValidityEntry, ValidityTable
from histoloom.clustering.validity.decision import IndexVote, decide, decide_by_nulls
from histoloom.evaluation.results import PaperSimilarity, Similarity, SimilarityEntry
from histoloom.run.directory import Run
from histoloom.seeding import numpy_generator

KS = (2, 4)


def features(*, apart: float) -> np.ndarray:
    """160 points in six dimensions, in four groups that are ``apart``."""
    noise_ND = numpy_generator(0, "features").standard_normal((160, 6))
    return noise_ND + apart * np.eye(6)[np.arange(160) % 4]


def report(run: Run, *, apart: float) -> str:
    """The page of a run whose choice of k is made on these features."""
    old = Decision.load(run.folder("clusters"))
    vote = IndexVote(old.k, old.rule, list(old.passed_over), dict(old.votes), dict(old.by_index), old.text)
    by_nulls = decide_by_nulls(features(apart=apart), ks=KS, seed=0, draws=6, points=160)
    decide(vote, by_nulls=by_nulls, restarts={2: [0.5, 0.75], 4: [0.25, 1.0]}).save(run.folder("clusters"))
    inputs = {stage: run.folder(stage) for stage in STAGES}
    return render(read_page(run.path, config=run.config, inputs=inputs, maps=run.folder("report") / "maps"))


def test_structureless_features_are_called_so(finished: Run) -> None:
    page = report(finished, apart=0.0)
    assert "No evidence of clusters" in page
    assert page.count("None passes: there is no evidence of groups") == 2, "on the first screen and above the figure"
    assert "k = 4 is chosen by the plain rule" in page
    assert "k-means on this run's features against k-means on data without groups" in page
    assert "no: 0 of 5 indices better than without clusters" in page


def test_separated_features_are_called_clusters(finished: Run) -> None:
    page = report(finished, apart=12.0)
    assert "Evidence of clusters: at k = 4, " in page
    assert "No evidence of clusters" not in page
    assert "0.25 to 1.00" in page
    assert "k = 4: 4 passes" in page, "in the figure"


def test_cells_hold_the_least_excess_and_mark_what_is_clear(finished: Run) -> None:
    page = report(finished, apart=12.0)
    decision = Decision.load(finished.folder("clusters"))
    assert [row.k for row in decision.nulls] == [2, 4]
    for row in decision.nulls:
        cells = []
        for index in INDEX_TITLES:
            least = min(row.indices[index].excess.values(), key=lambda excess: excess.low)
            clear = ' class="best"' if least.low > 0 else ""
            spread = f'<span class="soft">({least.low:.1f} to {least.high:.1f})</span>'
            cells.append(f"<td{clear}>{least.value:.1f} {spread}</td>")
        assert "".join(cells) in page
        assert f"<td>{row.stability['weakest'].null['gaussian']:.2f}</td>" in page
    assert page.count('<tr class="chosen"><th scope="row">4<span class="hidden"> (chosen)</span></th><td') == 3


def test_a_decision_of_an_earlier_version_has_no_such_table(finished: Run) -> None:
    inputs = {stage: finished.folder(stage) for stage in STAGES}
    page = read_page(finished.path, config=finished.config, inputs=inputs, maps=finished.folder("report") / "maps")
    assert page.decision.nulls == ()
    assert "data without clusters:" not in render(page)


def test_all_five_indices_of_the_paper_are_best_at_14() -> None:
    for name in INDEX_TITLES:
        best = max if BETTER[name] == "larger" else min
        assert best(ROWS, key=lambda k: ROWS[k][name]) == 14


def test_hartigan_and_calinski_harabasz_of_the_paper_belong_together() -> None:
    for k, row in ROWS.items():
        expected = np.exp(row["hartigan"]) * (10_000 - k) / (k - 1)
        assert row["calinski_harabasz"] == pytest.approx(expected, rel=2e-5)


def test_paper_tables_keep_every_k_and_leave_gaps() -> None:
    entries = [
        ValidityEntry(k=k, method=method, n=100, sizes=(), **dict.fromkeys(INDEX_TITLES, value))
        for k, method, value in ((8, "infomax", 0.5), (10, "kmeans", 0.1))
    ]
    rows = paper_validity(ValidityTable(entries=tuple(entries)))
    assert [row.k for row in rows] == [8, *range(10, 17)]
    assert rows[0].pairs == ((None, 0.5),) * 5
    assert rows[1].pairs[0] == (2142.54026, None)


def test_the_papers_definitions_are_reported_with_the_usual_ones_and_their_floor() -> None:
    def entry(comparison: str, value: float, *, metric: str = "ssim", k: int = 14) -> SimilarityEntry:
        return SimilarityEntry.model_validate(
            {"k": k, "cluster": None, "comparison": comparison, "metric": metric, "value": value, "pairs": 9}
            | {"interval": [value, value], "extractor": "RGB pixels", "real_split": "train"}
        )

    usual = Similarity(entries=(entry("synthetic_real", 0.3), entry("real_real", 0.32), entry("real_real", 9.0, k=10)))
    by_paper = PaperSimilarity(
        entries=(entry("synthetic_real", 0.8), entry("synthetic_other", 0.6), entry("real_real", 0.2, metric="ms_ssim"))
    )
    published, own, floor, other = definition_rows(usual, by_paper, k=14)
    assert published.by_paper == (0.7988, 0.2196, 0.4923)
    assert published.usual == (None, None, None)
    assert (own.by_paper, own.usual) == ((0.8, None, None), (0.3, None, None))
    assert (floor.by_paper, floor.usual) == ((None, 0.2, None), (0.32, None, None))
    assert (other.by_paper, other.usual) == ((0.6, None, None), (None, None, None))
    assert definition_rows(usual, None, k=14) == []
    assert len(definition_rows(usual, by_paper, k=2)) == 3  # the paper has no such k


def test_clusters_lie_over_regions_by_shares() -> None:
    region_N = np.array(["Tumour"] * 6 + ["Stroma"] * 2 + [""] * 4, object)
    label_N = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1])
    table = region_table(region_N, label_N, k=3)
    assert table.rows == (
        ("Tumour", 6, (5 / 6, 1 / 6, 0.0)),
        ("(no name)", 3, (0.0, 0.0, 1.0)),
        ("Stroma", 2, (0.0, 1.0, 0.0)),
    )
    assert table.agreement is not None
    assert 0.5 < table.agreement < 1
    assert region_table(np.array(["", ""], object), np.array([0, 1]), k=2).agreement is None
