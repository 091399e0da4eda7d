"""Patches by id, clusters by patch, and which clusters are neighbours."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from histoloom.atlas.browse.cluster_table import ClusterTable, Extent, read_clusters, round_robin
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.maps.overlay import cluster_overlay
from histoloom.run.directory import Run
from histoloom.seeding import permutation


@pytest.fixture(scope="module")
def table(published: Run) -> PatchTable:
    return PatchTable(published.folder("patches"))


def by_hand() -> ClusterTable:
    """Two patches of cluster 0, which are next to 1 and 2; three of cluster 1, two of them unsure."""
    label_N, second_N = np.array([0, 0, 1, 1, 1], np.int16), np.array([1, 2, 2, 2, 0], np.int16)
    p_N = np.array([0.99, 0.95, 0.5, 0.6, 0.97], np.float32)
    members = tuple(np.flatnonzero(label_N == cluster) for cluster in range(3))
    return ClusterTable(3, label_N, p_N, second_N, 1 - p_N, members, np.array([[1, 1], [3, 0], [0, 0]]))


def test_every_patch_is_clusters_by_its_id_and_nothing_else_is(table: PatchTable, published: Run) -> None:
    index = pd.read_parquet(published.folder("patches") / "index.parquet")
    assert [table.row(patch_id) for patch_id in index["patch_id"]] == list(range(len(table)))
    assert [table.row(text) for text in ("", "slide-0", "\ud800", "\0", "a" * 10_000)] == [None] * 5
    assert table.ids([3, 1]) == index["patch_id"].iloc[[3, 1]].tolist()
    shuffled = permutation(0, "rows", n=len(table))
    clusters = table.rows_of(pa.array([*index["patch_id"].iloc[shuffled], "nothing"]))
    assert clusters.tolist() == [*shuffled.tolist(), -1]


def test_a_slide_that_was_left_out_is_not_there(table: PatchTable) -> None:
    assert table.slides["slide_id"].tolist() == ["slide-0", "slide-1", "slide-2"]
    assert [table.slide_number(slide) for slide in ("slide-1", "bad", "")] == [1, None, None]


def test_clusters_are_joined_by_id(table: PatchTable, published: Run) -> None:
    """The stage's rows are in another order than the patches."""
    folder = published.folder("clusters")
    stored = pd.read_parquet(folder / "index.parquet").assign(row=np.arange(len(table))).set_index("patch_id")
    p_NK = load_file(folder / "probabilities.safetensors")["k4"]
    clusters = read_clusters(folder, table=table, k=4)
    for row, patch_id in enumerate(table.ids(range(len(table)))):
        own, p_K = stored["k4"][patch_id], p_NK[stored["row"][patch_id]]
        assert (clusters.label_N[row], clusters.p_N[row]) == (own, p_K[own])
        assert clusters.p_second_N[row] == np.delete(p_K, own).max()
        assert row in clusters.members[own]
    assert clusters.slides_KS.sum() == len(table)


def test_a_card_shows_different_slides_first(table: PatchTable, published: Run) -> None:
    clusters = read_clusters(published.folder("clusters"), table=table, k=2)
    random_N = permutation(0, "order", n=len(table))
    rows = clusters.representatives(clusters.members[0], n=3, random_N=random_N, slide_N=table.slide_N)
    assert len(set(table.slide_N[rows])) == 3
    assert set(clusters.label_N[rows]) == {0}


class FewSlides:
    """A patch table of six patches on slides a (three), b, c and d, of two patients."""

    slide_N = np.array([0, 0, 0, 1, 2, 3])
    slides = pd.DataFrame({"slide": list("abcd"), "patient": list("xxyy")})


def test_typical_patches_come_from_different_slides_first() -> None:
    p_N = np.array([0.99, 0.98, 0.97, 0.9, 0.8, 0.1], np.float32)
    label_N = np.array([0, 0, 0, 0, 0, 1])
    members = (np.arange(5), np.array([5]), np.array([], int))
    slides_KS = np.array([[3, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    clusters = ClusterTable(3, label_N, p_N, label_N, p_N, members, slides_KS)
    few = cast(PatchTable, FewSlides())  # the two fields of a patch table that are read here
    assert clusters.most_typical(0, n=3, table=few).tolist() == [0, 3, 4]
    assert clusters.most_typical(2, n=3, table=few).tolist() == []
    assert clusters.extent(0, table=few) == Extent(5, 5 / 6, 3, 2)
    assert clusters.extent(2, table=few) == Extent(0, 0.0, 0, 0)


def test_each_group_in_turn_gives_its_next_row() -> None:
    assert round_robin("xxxyz").tolist() == [0, 3, 4, 1, 2]
    assert round_robin([]).tolist() == []


def test_neighbours_by_hand() -> None:
    first, second = by_hand().neighbours(1, n=2)
    assert (first.cluster, first.share, first.unsure) == (2, pytest.approx(2 / 3), 2)
    assert (second.cluster, second.share, second.unsure) == (0, pytest.approx(1 / 3), 0)
    assert [by_hand().unsure(cluster) for cluster in range(3)] == [0, 2, 0]
    assert by_hand().neighbours(2, n=2) == []


def test_marks_are_where_the_patches_are() -> None:
    white_HW3 = np.full((10, 20, 3), 255, np.uint8)
    boxes_N4 = np.array([[0, 0, 100, 50], [150, 50, 200, 100]])
    shown = cluster_overlay(white_HW3, boxes_N4=boxes_N4, dimensions=(200, 100), colour=(0, 0, 0))
    expected_HW = np.full((10, 20), 255)
    expected_HW[:5, :10] = expected_HW[5:, 15:] = 128
    np.testing.assert_allclose(shown[..., 0], expected_HW, atol=1)
