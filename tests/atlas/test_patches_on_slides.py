"""Which patches lie in a part of a slide, and in which clusters: as the two tables say, row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histoloom.atlas.browse.cluster_table import read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.clustering.clustering_set import Clustering
from histoloom.slides.patch_set import PatchSet

EVERYWHERE = (0.0, 0.0, 1e6, 1e6)


@pytest.fixture(scope="module")
def table(published):
    return PatchTable(published.folder("patches"))


@pytest.fixture(scope="module")
def joined(published):
    patches = PatchSet.open(published.folder("patches"))
    return patches.table.merge(Clustering.open(published.folder("clusters")).table, on="patch_id")


def labels(published, table, *, k):
    return read_clusters(published.folder("clusters"), table=table, k=k).label_N


def corners(table, rows):
    return set(zip(table.x_N[rows].tolist(), table.y_N[rows].tolist(), strict=True))


@pytest.mark.parametrize("k", [2, 4])
def test_patches_and_labels_are_those_of_the_tables(published, table, joined, k):
    label_N = labels(published, table, k=k)
    for slide_id, rows in joined.groupby("slide_id"):
        shown = table.in_box(slide_id, label_N=label_N, box=EVERYWHERE)
        assert shown.total == len(rows)
        by_id = dict(zip(table.ids(shown.rows_M), label_N[shown.rows_M].tolist(), strict=True))
        assert by_id == dict(zip(rows["patch_id"], rows[f"k{k}"], strict=True))
        sizes = table.cluster_sizes(slide_id, label_N=label_N, k=k)
        np.testing.assert_array_equal(sizes, np.bincount(rows[f"k{k}"], minlength=k))


@pytest.mark.parametrize("box", [(0, 0, 50, 60), (40.5, 10, 90, 70.5), (100, 90, 101, 91), (-50, -50, 0, 0)])
def test_only_those_that_touch_the_box(published, table, joined, box):
    rows = joined[joined.slide_id == "slide-1"]
    left, top, right, bottom = box
    touching = rows[(rows.x < right) & (rows.x + 32 > left) & (rows.y < bottom) & (rows.y + 32 > top)]
    shown = table.in_box("slide-1", label_N=labels(published, table, k=2), box=box)
    assert shown.total == len(touching) == len(shown.rows_M)
    assert corners(table, shown.rows_M) == set(zip(touching["x"], touching["y"], strict=True))


def test_where_there_are_too_many_the_same_ones_stay(table):
    label_N = np.zeros(len(table), np.int16)
    few, more = (table.in_box("slide-0", label_N=label_N, box=EVERYWHERE, max_patches=n) for n in (7, 12))
    assert (len(few.rows_M), few.total) == (7, 24)
    assert set(few.rows_M) < set(more.rows_M)
    assert (np.diff(more.rows_M) > 0).all()


def test_a_slide_without_patches_has_none(table):
    label_N = np.zeros(len(table), np.int16)
    assert table.in_box("bad", label_N=label_N, box=EVERYWHERE).total == 0
    assert table.cluster_sizes("bad", label_N=label_N, k=4).tolist() == [0, 0, 0, 0]


def test_patches_that_were_not_clustered_are_left_out(table):
    label_N = np.where(np.arange(len(table)) % 3 == 0, 1, -1).astype(np.int16)
    slides = pd.unique(table.slides["slide_id"])
    total = sum(table.in_box(slide_id, label_N=label_N, box=EVERYWHERE).total for slide_id in slides)
    assert total == (label_N == 1).sum() == sum(table.cluster_sizes(s, label_N=label_N, k=2)[1] for s in slides)
