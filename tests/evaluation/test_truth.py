"""Agreement of clusters with the true maps of slides."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloom.evaluation.truth import agreement, true_classes


def test_renamed_clusters_agree_wholly() -> None:
    truth = np.array([0, 0, 1, 1, 2, 2])
    result = agreement(np.array([5, 5, 3, 3, 9, 9]), truth_N=truth, k=3)
    assert result is not None
    assert (result.nmi, result.ari, result.n, result.classes) == (pytest.approx(1.0), pytest.approx(1.0), 6, 3)


def test_independent_clusters_agree_by_chance_alone() -> None:
    rng = np.random.default_rng(0)
    result = agreement(rng.integers(4, size=4000), truth_N=rng.integers(3, size=4000), k=3)
    assert result is not None
    assert result.nmi < 0.01
    assert abs(result.ari) < 0.01


def test_nmi_by_hand() -> None:
    """I = ln 2, H(clusters) = ln 4, H(truth) = ln 2: NMI = 2 ln 2 / (ln 4 + ln 2) = 2/3."""
    result = agreement(np.array([0, 1, 2, 3]), truth_N=np.array([0, 0, 1, 1]), k=3)
    assert result is not None
    assert result.nmi == pytest.approx(2 / 3)


def test_unknown_patches_are_left_out() -> None:
    result = agreement(np.array([0, 1, 0]), truth_N=np.array([0, 1, -1]), k=3)
    assert result is not None
    assert result.n == 2
    assert agreement(np.array([0, 1]), truth_N=np.array([-1, -1]), k=3) is None


def write_truth(slide: Path, *, left: int, right: int, names: list[str]) -> None:
    """A map of 10 x 10 whose left half is one class and whose right half another."""
    truth = np.full((10, 10), left, np.uint8)
    truth[:, 5:] = right
    Image.fromarray(truth).save(slide.with_name(f"{slide.stem}.truth.png"))
    slide.with_name(f"{slide.stem}.truth.json").write_text(json.dumps({"classes": names}))


def test_classes_of_patches_are_joined_by_name_over_slides(tmp_path: Path) -> None:
    write_truth(tmp_path / "a.tif", left=0, right=1, names=["void", "cells"])
    write_truth(tmp_path / "b.tif", left=1, right=0, names=["cells", "void"])
    slides = pd.DataFrame(
        {
            "slide_id": ["a", "b", "none"],
            "file": [str(tmp_path / f"{name}.tif") for name in ("a", "b", "none")],
            "width": 1000,
            "height": 1000,
        }
    )
    patches = pd.DataFrame(
        {
            "slide_id": ["b", "a", "a", "b", "none"],
            "x": [0, 700, 100, 800, 0],
            "y": [0, 100, 100, 500, 0],
            "extent": 150.0,
        }
    )
    classes = true_classes(patches, slides=slides)
    void = classes[0]
    assert (classes == void).tolist() == [True, False, True, False, False]
    assert classes[1] == classes[3]
    assert classes[4] == -1


def test_many_slides_are_looked_up_in_one_pass(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(2000)]
    slides = pd.DataFrame({"slide_id": names, "file": [str(tmp_path / name) for name in names]})
    slides = slides.assign(width=1000, height=1000)
    patches = pd.DataFrame({"slide_id": names * 300, "x": 0, "y": 0, "extent": 150.0})
    start = time.process_time()
    assert (true_classes(patches, slides=slides) == -1).all()
    assert time.process_time() - start < 4  # 9 seconds, if each slide searches the whole table


def test_the_entry_names_its_k_and_method() -> None:
    truth_N = np.array([0, 0, 1, 1])
    whole, split = (
        agreement(np.array(labels), truth_N=truth_N, k=k) for k, labels in ((2, [0, 0, 1, 1]), (3, [0, 1, 2, 2]))
    )
    assert whole is not None
    assert split is not None
    assert (whole.k, whole.method, whole.n, whole.classes) == (2, "infomax", 4, 2)
    assert (split.k, split.method, split.n, split.classes) == (3, "infomax", 4, 2)
    assert whole.nmi == pytest.approx(1.0)
    assert split.nmi < 1.0
    assert agreement(truth_N, truth_N=np.full(4, -1), k=2) is None
