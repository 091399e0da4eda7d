"""Records of an evaluation: files that exist are read, and written back with the same keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest

from histoloom.evaluation.results import (
    Accuracy,
    Distribution,
    Faithfulness,
    Originality,
    Similarity,
    SimilarityEntry,
    Truth,
)
from histoloom.run.directory import read_json, write_json

STARTER = Path(__file__).parents[2] / "starter" / "evaluation"
"""what an earlier version wrote"""


@pytest.mark.parametrize(
    ("record", "file"),
    [
        (Similarity, "similarity.json"),
        (Distribution, "distribution.json"),
        (Faithfulness, "faithfulness.json"),
        (Originality, "originality.json"),
    ],
)
def test_files_of_the_starter_are_read_and_written_back_unchanged(record, file: str, tmp_path: Path) -> None:
    loaded = record.load(STARTER)
    loaded.save(tmp_path)
    assert read_json(tmp_path / file) == read_json(STARTER / file)
    assert record.load(tmp_path) == loaded


@pytest.mark.parametrize("record", [Similarity, Distribution, Faithfulness, Originality, Truth])
def test_an_absent_file_is_none(record, tmp_path: Path) -> None:
    assert record.load(tmp_path) is None


def test_entries_of_all_clusters_and_of_one() -> None:
    similarity = Similarity.load(STARTER)
    assert similarity is not None
    (k,) = {entry.k for entry in similarity.entries}
    assert {entry.cluster for entry in similarity.select(k=k)} == {None}
    assert {entry.cluster for entry in similarity.select(k=k, cluster=2)} == {2}
    assert similarity.select(k=k + 1) == []


def test_same_slide_stands_in_the_file_only_where_it_is_true(tmp_path: Path) -> None:
    entry = SimilarityEntry(
        k=2, cluster=0, comparison="real_real", metric="ssim", value=0.5, interval=(0.4, 0.6), pairs=3,
        extractor="RGB pixels", real_split="train",
    )  # fmt: skip
    Similarity(entries=(entry, entry.model_copy(update={"same_slide": True}))).save(tmp_path)
    first, second = read_json(tmp_path / "similarity.json")
    assert "same_slide" not in first
    assert second["same_slide"] is True


def test_truth_with_the_names_of_its_classes_is_read_as_their_number(tmp_path: Path) -> None:
    entry = {"k": 3, "method": "infomax", "nmi": 0.7, "ari": 0.6, "n": 72}
    write_json(tmp_path / "truth.json", [entry | {"classes": ["a", "b"]}, entry | {"classes": 4}])
    truth = Truth.load(tmp_path)
    assert truth is not None
    assert [agreement.classes for agreement in truth.agreements] == [2, 4]


def test_a_faithfulness_that_was_not_measured_holds_its_reason_alone(tmp_path: Path) -> None:
    Faithfulness(k=4, note="too few held-out patches").save(tmp_path)
    assert read_json(tmp_path / "faithfulness.json") == {"k": 4, "note": "too few held-out patches"}


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", Accuracy(accuracy=float("nan"), interval=(0, 1)).model_dump(mode="json"))
