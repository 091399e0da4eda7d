"""Which patches lie in a part of a slide, and in which clusters: as the two tables say, row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histoloom.atlas.placed_patches import PlacedPatches
from histoloom.clustering.clustering_set import Clustering
from histoloom.slides.patch_set import PatchSet


@pytest.fixture(scope="module")
def tables(published):
    patches = PatchSet.open(published.folder("patches"))
    clustering = Clustering.open(published.folder("clusters"))
    return patches, clustering


@pytest.fixture(scope="module")
def placed(tables):
    patches, clustering = tables
    return PlacedPatches(patches, clustering=clustering)


EVERYWHERE = (0.0, 0.0, 1e6, 1e6)


@pytest.mark.parametrize("k", [2, 4])
def test_patches_and_labels_are_those_of_the_tables(tables, placed, k):
    patches, clustering = tables
    joined = patches.table.merge(clustering.table, on="patch_id")
    for slide_id, rows in joined.groupby("slide_id"):
        found = placed.within(slide_id, k=k, box=EVERYWHERE)
        seen = sorted(zip(found.x_N.tolist(), found.y_N.tolist(), found.label_N.tolist(), strict=True))
        assert seen == sorted(zip(rows["x"], rows["y"], rows[f"k{k}"], strict=True))
        assert found.total == len(rows)
        assert found.extent == rows["extent"].iloc[0]
        np.testing.assert_array_equal(placed.sizes(slide_id, k=k), np.bincount(rows[f"k{k}"], minlength=k))


@pytest.mark.parametrize("box", [(0, 0, 50, 60), (40.5, 10, 90, 70.5), (100, 90, 101, 91), (-50, -50, 0, 0)])
def test_only_those_that_touch_the_box(tables, placed, box):
    rows = tables[0].table.query("slide_id == 'slide-1'")
    left, top, right, bottom = box
    touching = rows[(rows.x < right) & (rows.x + 32 > left) & (rows.y < bottom) & (rows.y + 32 > top)]
    found = placed.within("slide-1", k=2, box=box)
    assert found.total == len(touching) == len(found.x_N)
    assert set(zip(found.x_N.tolist(), found.y_N.tolist(), strict=True)) == set(
        zip(touching["x"], touching["y"], strict=True)
    )


def test_where_there_are_too_many_the_same_ones_stay_when_the_box_shrinks(placed):
    few = placed.within("slide-0", k=2, box=EVERYWHERE, most=7)
    assert len(few.x_N) == len(few.y_N) == len(few.label_N) == 7
    assert few.total == 24
    more = placed.within("slide-0", k=2, box=EVERYWHERE, most=12)
    corners = [set(zip(found.x_N.tolist(), found.y_N.tolist(), strict=True)) for found in (few, more)]
    assert corners[0] < corners[1]


def test_a_slide_without_patches_has_none(placed):
    assert placed.within("bad", k=2, box=EVERYWHERE).total == 0
    assert placed.sizes("bad", k=4).tolist() == [0, 0, 0, 0]


def test_patches_that_were_not_clustered_are_left_out(tables):
    patches, clustering = tables
    some = Clustering(clustering.folder)
    some.table = clustering.table.iloc[:10]
    placed = PlacedPatches(patches, clustering=some)
    total = sum(placed.within(slide_id, k=2, box=EVERYWHERE).total for slide_id in pd.unique(patches.table.slide_id))
    assert total == 10
