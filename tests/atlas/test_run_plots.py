"""The plots of a run: what is drawn is what the records say, and stands in the table beside the drawing."""

from __future__ import annotations

import csv
import io
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from histoloom.atlas.report.plots import Plot
from histoloom.atlas.report.run_plots import colourings, confusion, copy_scores, distances, why_this_k
from histoloom.clustering.results import Decision, NullComparison, ValidityTable
from histoloom.evaluation.results import Distribution, Faithfulness, Originality

INDICES = ("calinski_harabasz", "c_index", "dunn", "hartigan", "mcclain_rao")


def table(plot: Plot | None) -> list[dict[str, str]]:
    assert plot is not None
    return list(csv.DictReader(io.StringIO(plot.csv)))


def compared(k: int) -> NullComparison:
    number = {"real": 2.0 + k, "deviation": 0.1, "null": {"gaussian": 1.0}, "null_deviation": {"gaussian": 0.2}}
    number["excess"] = {"gaussian": {"value": 5.0, "low": 4.0 if k == 2 else -1.0, "high": 6.0}}
    stable = number | {"real": 0.75}
    values = {"k": k, "indices": dict.fromkeys(INDICES, number), "smallest": 0.1, "largest": 0.5}
    return NullComparison.model_validate(values | {"stability": {"agreement": stable, "weakest": stable}})


def test_why_this_k_shows_the_run_beside_data_without_clusters_and_says_whether_it_passes() -> None:
    decision = Decision(k=3, rule="r", has_clusters=True, partly=(3,), nulls=(compared(2), compared(3)))
    plot = why_this_k(decision, ValidityTable(entries=()), k=3)
    rows = table(plot)
    assert len(rows) == 7 * 2 * 2, "five indices and two agreements, two k, the run and a null"
    (gaussian,) = [r for r in rows if (r["measure"], r["k"], r["data"]) == ("Dunn", "3", "gaussian")]
    assert (gaussian["value"], gaussian["deviation"]) == ("1.0", "0.2")
    assert "k = 3: none passes; 3 is the best that passes in part" in plot.svg
    for title in ("Calinski-Harabasz", "McClain-Rao", "Found again in other patches", "number of groups k"):
        assert title in plot.svg


def test_distances_stand_beside_their_floors() -> None:
    entry: dict[str, Any] = {"k": 2, "metric": "kid", "extractor": "pixels", "value": 0.25, "interval": [0.125, 0.5]}
    entry |= {"floor": 0.0625, "floor_interval": [0.0, 0.125], "better": "smaller", "n_real": 9, "n_synthetic": 9}
    entry |= {"n_floor": [9, 9], "notes": [], "real_split": "holdout", "draws": 1, "floor_from": "others"}
    both = [entry | {"cluster": None}, entry | {"cluster": 1, "value": 0.75}, entry | {"cluster": None, "k": 3}]
    distribution = Distribution.model_validate({"entries": both})
    rows = table(distances(distribution, names=["bone", "fat"], k=2))
    assert [(r["cluster"], r["value"], r["95 % low"]) for r in rows] == [
        ("all", "0.25", "0.125"),
        ("all", "0.0625", "0.0"),
        ("1", "0.75", "0.125"),
        ("1", "0.0625", "0.0"),
    ]
    plot = distances(distribution, names=["bone", "fat"], k=2)
    assert plot is not None
    assert ">fat<" in plot.svg
    assert ">bone<" not in plot.svg, "it has no numbers of its own"
    assert distances(Distribution(entries=()), names=["bone", "fat"], k=2) is None


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are() -> None:
    found = {"n": 2, "accuracy": 0.5, "interval": [0.4, 0.6], "recall": [1.0, 0.0], "intervals": [None, None]}
    judged = {"samples": found | {"confusion": [[1, 0], [1, 0]]}, "held_out": found | {"confusion": [[1, 0], [1, 0]]}}
    names = [r"$\frac{1}{$ & <b>", "骨"]
    plot = confusion(Faithfulness.model_validate({"k": 2, "judge": judged}), names=names, k=2)
    assert plot is not None
    texts = [text.text for text in ElementTree.fromstring(plot.document).iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) <= set(texts)


def test_confusion_has_shares_of_each_cluster_of_samples_and_of_real_patches() -> None:
    found = {"n": 8, "accuracy": 0.5, "interval": [0.4, 0.6], "recall": [0.75, 0.5], "intervals": [None, None]}
    judged = {"samples": found | {"confusion": [[3, 1], [2, 2]]}, "held_out": found | {"confusion": [[4, 0], [0, 0]]}}
    faithfulness = Faithfulness.model_validate({"k": 2, "judge": judged})
    rows = table(confusion(faithfulness, names=["bone", "fat"], k=2))
    assert [(r["count"], r["share of the cluster, %"]) for r in rows] == [
        *(("3", "75.0"), ("1", "25.0"), ("2", "50.0"), ("2", "50.0")),
        *(("4", "100.0"), ("0", "0.0"), ("0", "0.0"), ("0", "0.0")),
    ]
    assert confusion(faithfulness, names=["bone", "fat"], k=3) is None


def test_copy_scores_of_samples_stand_beside_those_of_held_out_patches() -> None:
    samples = [{"file": "a", "nearest": "p", "score": score, "copy": False, "too_plain": False} for score in (0.3, 0.9)]
    record = {"n": 2, "n_test": 4, "membership": None, "notes": [], "samples": samples, "threshold": 0.8}
    plot = copy_scores(Originality.model_validate(record | {"held_out_scores": [0.4, 0.4, 0.4, 0.2]}))
    shares = {(r["images"], float(r["score from"])): float(r["share of images, %"]) for r in table(plot)}
    drawn = {start: share for (images, start), share in shares.items() if images == "samples" and share}
    assert list(drawn) == pytest.approx([0.3, 0.9], abs=0.026)
    assert list(drawn.values()) == [50, 50]
    held_out = {start: share for (images, start), share in shares.items() if images.startswith("held-out") and share}
    assert sorted(held_out.values()) == [25, 75]
    assert plot is not None
    assert "counts as a copy" in plot.svg


def test_many_slides_share_the_last_colour() -> None:
    slides = [f"slide {number % 15}" for number in range(45)] + ["slide 14"]
    by_slide = colourings(
        group_N=np.zeros(46, int), names=["a"], colours=["#000000"], slides=slides, patients=slides, p_N=np.ones(46)
    )[1]
    assert "slide 14" in by_slide.names, "it has most patches"
    assert list(by_slide.names[:-1]) == sorted(by_slide.names[:-1])
    assert by_slide.names[-1] == "3 other slides"
    assert len(by_slide.names) == len(by_slide.colours) == 13
    assert (by_slide.group_N == 12).sum() == 9
