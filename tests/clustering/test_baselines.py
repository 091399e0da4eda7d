"""The comparison of clusterings: baselines find what is plainly there; scores and labels against cases by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clusterings import BASELINES, MEASURES, interval, labelled_sets, scores
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from histoloom.run.directory import write_json
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet


def separated(*, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of 200, 100 and 50 points in three dimensions, apart, yet joined by a few neighbours."""
    truth = np.repeat([0, 1, 2], [200, 100, 50])
    rng = numpy_generator(seed, "separated")
    return 6 * np.eye(3)[truth] + rng.standard_normal((350, 3)), truth


@pytest.mark.parametrize("method", sorted(BASELINES))
def test_finds_separated_groups_numbered_by_size(method: str) -> None:
    x, truth = separated(seed=1)
    labels = BASELINES[method](x, k=3, seed=0)
    assert adjusted_rand_score(truth, labels) > 0.97
    assert list(np.bincount(labels)) == sorted(np.bincount(labels), reverse=True)
    np.testing.assert_array_equal(labels, BASELINES[method](x, k=3, seed=0))


def test_clusters_that_are_tissue_on_each_slide_alone_agree_within_slides_only() -> None:
    """Two slides with the same tissues, whose clusters have other numbers; a third slide has one tissue."""
    label_N = np.concatenate([np.repeat([0, 1], 30), np.repeat([0, 1], 30), np.zeros(30, int), [-1, -1]])
    slide_N = np.concatenate([np.repeat([0, 1, 2], [60, 60, 30]), [0, 2]])
    clusters_N = np.concatenate([np.repeat([0, 1], 30), np.repeat([2, 3], 30), np.full(30, 4), [0, 4]])
    overall, within, with_slide = scores(label_N, clusters_N, slide_N=slide_N).values()
    assert within == 1
    known = label_N >= 0
    assert overall == normalized_mutual_info_score(label_N[known], clusters_N[known])
    assert overall < 0.6
    assert with_slide == normalized_mutual_info_score(slide_N, clusters_N)
    no_slide = scores(label_N, clusters_N, slide_N=np.arange(len(slide_N)))
    assert np.isnan(no_slide[MEASURES[1]])


def test_intervals_are_students() -> None:
    assert interval([0.2, 0.3, 0.4]) == "0.300 (0.052 to 0.548)"  # 4.303 deviations of the mean, two degrees of freedom
    assert interval([0.25]) == "0.250"
    assert interval([0.2, float("nan")]) == "none"


def patch_set(folder: Path, *, files: dict[str, str], patches: pd.DataFrame) -> PatchSet:
    folder.mkdir()
    patches.assign(split="train").to_parquet(folder / "index.parquet", index=False)
    slides = pd.DataFrame({"slide_id": list(files), "file": list(files.values()), "source_mpp": 0.5})
    slides.to_parquet(folder / "slides.parquet", index=False)
    write_json(folder / "meta.json", {"size": 8, "mpp": 1.0, "n": len(patches)})
    return PatchSet.open(folder)


def test_patches_get_the_label_of_the_nearest_spot_within_reach_and_of_their_tile(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    spots = pd.DataFrame({"x": [100, 1000, 3000], "y": [100, 100, 100], "label": ["fat", "gland", "undetermined"]})
    spots.to_csv(tmp_path / "labels" / "her2-B1.csv", index=False)
    tiles = pd.DataFrame({"file": ["one.jpg", "two.jpg"], "label": ["MUS", "ADI"]})
    tiles.to_csv(tmp_path / "labels" / "crc.csv", index=False)
    sets = labelled_sets(tmp_path)

    # Middles at x + 8; 100 um are 200 px; the last patch lies near a spot, but on another slide.
    places = pd.DataFrame({"x": [92, 290, 293, 800, 2992, 92], "y": 92, "extent": 16, "slide_id": [*["b1"] * 5, "c1"]})
    files = {"b1": "/data/her2-B1.tif", "c1": "/data/her2-C1.tif"}
    breast = patch_set(tmp_path / "breast", files=files, patches=places)
    assert sets["her2"].label(breast).tolist() == [0, 0, -1, 1, -1, -1]

    places = pd.DataFrame({"x": 0, "y": 0, "extent": 16, "slide_id": ["b", "a", "b"]})
    files = {"a": "/data/one.jpg", "b": "/data/two.jpg"}
    colon = patch_set(tmp_path / "colon", files=files, patches=places)
    assert sets["crc"].label(colon).tolist() == [0, 1, 0]
