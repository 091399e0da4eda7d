"""The report's table of distributions."""

from __future__ import annotations

from typing import Any

from histoloom.atlas.report.distribution_table import distribution_table, reading


def entry(**changed: Any) -> dict[str, Any]:
    return {
        "k": 3, "cluster": None, "metric": "frechet", "extractor": "pixels", "value": 2.0, "interval": [1.8, 2.2],
        "floor": 1.0, "floor_interval": [0.9, 1.1], "better": "smaller", "n_real": 300, "n_synthetic": 120,
        "n_floor": [300, 120], "notes": ["Few."], "real_split": "holdout", "draws": 4,
        "floor_from": "patches of the training slides",
    } | changed  # fmt: skip


def test_rows_of_all_clusters_at_the_shown_k() -> None:
    found = distribution_table({"entries": [entry(), entry(k=4), entry(cluster=1), entry(metric="mmd")]}, k=3)
    assert [(row.title, row.value, row.floor) for row in found.rows] == [("Frechet distance", 2.0, 1.0)]
    assert found.rows[0].reading == "worse than other real patches"
    text = " ".join(found.sentences)
    assert "120 samples, every cluster by its frequency in real tissue, against 300 held-out patches" in text
    assert text.count("Few.") == 1


def test_a_cluster_has_its_own_table() -> None:
    content = {"entries": [entry(), entry(cluster=1, value=3.0, n_synthetic=24)]}
    found = distribution_table(content, k=3, cluster=1)
    assert [row.value for row in found.rows] == [3.0]
    assert found.sentences[0].startswith("24 samples against 300 held-out patches of the cluster; the floor is 120 pat")
    (said,) = distribution_table(content, k=3, cluster=2).sentences
    assert "too few samples" in said


def test_reading_goes_by_the_intervals() -> None:
    assert reading(value=(1, 2), floor=(2, 3), better="smaller") == "like other real patches"
    assert reading(value=(1, 2), floor=(3, 4), better="smaller") == "better than other real patches"
    assert reading(value=(1, 2), floor=(3, 4), better="larger") == "worse than other real patches"


def test_what_was_not_measured_is_said() -> None:
    found = distribution_table({"entries": [], "missing": {"lpips-alex": "no weights"}}, k=3)
    assert found.rows == ()
    assert "too few samples" in found.sentences[0]
    assert found.sentences[1] == "Not measured by lpips-alex: no weights"
    assert distribution_table({}, k=3).sentences == ()
