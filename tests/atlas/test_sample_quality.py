"""The report's tables and sentences on the quality of samples."""

from __future__ import annotations

from typing import Any

import pytest

from histoloom.atlas.report.sample_quality import (
    DistributionTable,
    distribution_reading,
    distribution_table,
    recognition_details,
    similarity_reading,
    usefulness_sentences,
)
from histoloom.evaluation.results import (
    Distribution,
    DistributionEntry,
    Faithfulness,
    SimilarityEntry,
)


def similarity(metric: str, value: float) -> SimilarityEntry:
    return SimilarityEntry(
        k=3,
        cluster=None,
        comparison="synthetic_real",
        metric=metric,
        value=value,
        interval=(value - 0.01, value + 0.01),
        pairs=64,
        extractor="x",
        real_split="holdout",
    )


@pytest.mark.parametrize(
    ("metric", "synthetic", "words"),
    [
        ("ssim", 0.515, "no difference from real pairs is seen with 64 pairs"),
        ("ssim", 0.6, "more alike than"),
        ("ssim", 0.4, "less alike than"),
        ("lpips", 0.6, "less alike than"),
        ("lpips", 0.4, "more alike than"),
    ],
)
def test_words_follow_the_direction_of_the_metric(metric: str, synthetic: float, words: str) -> None:
    reading = similarity_reading(similarity(metric, synthetic), floor=similarity(metric, 0.5))
    assert reading.startswith(words)


def test_samples_that_are_as_near_to_other_clusters_are_not_called_faithful() -> None:
    own, floor, other = (similarity("ssim", value) for value in (0.515, 0.5, 0.55))
    assert "no more alike than with other groups" in similarity_reading(own, floor=floor, other=other)
    nearer = similarity("ssim", 0.4)
    assert "other clusters" not in similarity_reading(own, floor=floor, other=nearer)


def entry(**changed: Any) -> DistributionEntry:
    values = {
        "k": 3, "cluster": None, "metric": "frechet", "extractor": "pixels", "value": 2.0, "interval": (1.8, 2.2),
        "floor": 1.0, "floor_interval": (0.9, 1.1), "better": "smaller", "n_real": 300, "n_synthetic": 120,
        "n_floor": (300, 120), "notes": ("Few.",), "real_split": "holdout", "draws": 4,
        "floor_from": "patches of the training slides",
    }  # fmt: skip
    return DistributionEntry(**values | changed)


def test_rows_of_all_clusters_at_the_shown_k() -> None:
    entries = (entry(), entry(k=4), entry(cluster=1), entry(metric="mmd"))
    table = distribution_table(Distribution(entries=entries), k=3)
    assert [(row.title, row.numbers.value, row.numbers.floor) for row in table.rows] == [("Frechet distance", 2.0, 1.0)]
    assert table.rows[0].reading == "worse than other real patches"
    text = " ".join(table.sentences)
    assert "120 samples, every group by its frequency in real tissue, against 300 held-out patches" in text
    assert text.count("Few.") == 1


def test_a_cluster_has_its_own_table() -> None:
    distribution = Distribution(entries=(entry(), entry(cluster=1, value=3.0, n_synthetic=24)))
    table = distribution_table(distribution, k=3, cluster=1)
    assert [row.numbers.value for row in table.rows] == [3.0]
    assert table.sentences[0].startswith("24 samples against 300 held-out patches of the group; the floor is 120 pat")
    assert distribution_table(distribution, k=3, cluster=2) == DistributionTable((), ())


@pytest.mark.parametrize(
    ("floor", "better", "words"),
    [
        ((2, 3), "smaller", "no difference from other real patches is seen with 120 samples"),
        ((3, 4), "smaller", "better than other real patches"),
        ((3, 4), "larger", "worse than other real patches"),
    ],
)
def test_the_reading_follows_the_intervals(floor: tuple[float, float], better: str, words: str) -> None:
    reading = distribution_reading(entry(interval=(1, 2), floor_interval=floor, better=better))
    assert reading == words


def test_a_run_without_distributions_has_no_table() -> None:
    distribution = Distribution(entries=(), missing={"lpips-alex": "no weights"})
    assert distribution_table(distribution, k=3) == distribution_table(None, k=3) == DistributionTable((), ())


def recognised(*recalls: float | None, confusion: list[list[int]]) -> dict[str, Any]:
    intervals = [None if r is None else [max(0.0, r - 0.1), min(1.0, r + 0.1)] for r in recalls]
    return {
        "n": 20, "accuracy": 0.8, "interval": [0.7, 0.9],
        "recall": list(recalls), "intervals": intervals, "confusion": confusion,
    }  # fmt: skip


FAITHFULNESS = Faithfulness.model_validate(
    {
        "k": 2,
        "n_real": 1200,
        "n_synthetic": 24,
        "clusterer": {
            "samples": recognised(0.9, 0.5, confusion=[[9, 1], [5, 5]]),
            "reconstructions": recognised(0.95, 0.9, confusion=[[9, 1], [1, 9]]),
        },
        "judge": {
            "samples": recognised(0.8, 0.75, confusion=[[8, 2], [3, 9]]),
            "held_out": recognised(0.85, None, confusion=[[9, 1], [0, 0]]),
        },
        "usefulness": {
            "real": {"accuracy": 0.9, "interval": [0.85, 0.95]},
            "synthetic": {"accuracy": 0.7, "interval": [0.6, 0.8]},
            "both": {"accuracy": 0.91, "interval": [0.86, 0.96]},
        },
    }
)


def test_recognition_stands_beside_that_of_real_patches() -> None:
    first, second = (recognition_details(FAITHFULNESS, cluster=cluster, k=2) for cluster in (0, 1))
    assert first.startswith(
        "the run's clusterer recognises 90% of the samples and 95% of real patches after the VQ-GAN"
    )
    assert "and most often mistakes them for cluster 0" in second
    assert "there are no held-out real patches to compare with" in second


def test_nothing_stands_for_another_k_or_without_a_measurement() -> None:
    assert recognition_details(FAITHFULNESS, cluster=0, k=3) == ""
    assert recognition_details(None, cluster=0, k=2) == ""
    assert usefulness_sentences(None, k=2) == ()
    assert usefulness_sentences(Faithfulness(k=2, note="too few"), k=2) == (
        "Whether samples are recognised as their group was not measured: too few.",
    )


def test_accuracies_of_classifiers_trained_on_samples() -> None:
    (sentence,) = usefulness_sentences(FAITHFULNESS, k=2)
    assert "90% (85% to 95%) trained on real patches, 70% (60% to 80%) trained on samples alone" in sentence
    assert "91% (86% to 96%) trained on both" in sentence
