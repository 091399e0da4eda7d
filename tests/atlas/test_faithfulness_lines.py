"""Sentences on faithfulness."""

from __future__ import annotations

from typing import Any

from histoloom.atlas.report.faithfulness_lines import cluster_line, summary_lines


def seen(*recalls: float | None, confusion: list[list[int]]) -> dict[str, Any]:
    intervals = [None if r is None else [max(0.0, r - 0.1), min(1.0, r + 0.1)] for r in recalls]
    return {"recall": list(recalls), "intervals": intervals, "confusion": confusion}


CONTENT: dict[str, Any] = {
    "k": 2,
    "n_real": 1200,
    "n_synthetic": 24,
    "clusterer": {
        "samples": seen(0.9, 0.5, confusion=[[9, 1], [5, 5]]),
        "reconstructions": seen(0.95, 0.9, confusion=[[9, 1], [1, 9]]),
    },
    "judge": {
        "samples": seen(0.8, 0.75, confusion=[[8, 2], [3, 9]]),
        "held_out": seen(0.85, None, confusion=[[9, 1], [0, 0]]),
    },
    "usefulness": {
        "real": {"accuracy": 0.9, "interval": [0.85, 0.95]},
        "synthetic": {"accuracy": 0.7, "interval": [0.6, 0.8]},
        "both": {"accuracy": 0.91, "interval": [0.86, 0.96]},
    },
}


def test_a_cluster_like_real_tissue_and_one_that_is_not() -> None:
    good, bad = (cluster_line(CONTENT, cluster=cluster, k=2) for cluster in (0, 1))
    assert good.startswith(
        "Recognised like real tissue: the run's clusterer recognises 90% of the samples (95% of real"
    )
    assert bad.startswith("Not recognised by all as real tissue is: ")
    assert "takes them for cluster 0 most often else" in bad
    assert "(of real patches of held-out slides: none at hand)" in bad


def test_nothing_is_said_of_another_k_or_of_what_was_not_judged() -> None:
    assert cluster_line(CONTENT, cluster=0, k=3) == ""
    assert cluster_line({}, cluster=0, k=2) == ""
    assert summary_lines({}, k=2) == ()
    assert summary_lines({"k": 2, "note": "too few"}, k=2) == (
        "Whether samples show what they should was not judged: too few.",
    )


def test_what_samples_are_good_for() -> None:
    (line,) = summary_lines(CONTENT, k=2)
    assert "90% (85% to 95%) trained on real patches, 70% (60% to 80%) trained on samples alone" in line
    assert "91% (86% to 96%) trained on both" in line
