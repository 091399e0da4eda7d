"""How clusters split and merge: counted by hand, and drawn without losing a patch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from histoloom.atlas.browse.cluster_table import ClusterTable, overlap
from histoloom.atlas.browse.flow import GAP, HEIGHT, MARGIN, cluster_flows, counterpart, flow
from histoloom.seeding import numpy_generator


def table(labels: list[int] | np.ndarray, *, k: int) -> ClusterTable:
    label_N = np.asarray(labels, np.int16)
    members = tuple(np.flatnonzero(label_N == cluster) for cluster in range(k))
    sure_N = np.ones(len(label_N), np.float32)
    return ClusterTable(k, label_N, sure_N, label_N, 0 * sure_N, members, np.array([[len(rows)] for rows in members]))


def test_a_split_by_hand() -> None:
    """Four patches of cluster 0 go to 0, 0, 0 and 2; cluster 1 stays whole as cluster 1."""
    shared_AB = overlap(table([0, 0, 0, 0, 1, 1], k=2), table([0, 0, 0, 2, 1, 1], k=3))
    assert shared_AB.tolist() == [[3, 0, 1], [0, 2, 0]]
    split, kept = cluster_flows(shared_AB)
    assert [(share.cluster, share.share) for share in split.to] == [(0, 0.75), (2, 0.25)]
    assert (split.whole, kept.whole) == (False, True)
    assert [counterpart(shared_AB.T, cluster=cluster) for cluster in range(3)] == [0, 1, 0]


def test_a_cluster_without_patches_goes_nowhere() -> None:
    assert cluster_flows(np.array([[0, 0], [1, 1]]))[0].to == ()


def test_patches_that_were_not_clustered_are_left_out() -> None:
    assert overlap(table([0, -1, 1], k=2), table([0, 0, -1], k=1)).tolist() == [[1], [0]]


@pytest.mark.parametrize("focus", [3, 5, 8])
def test_the_picture_holds_every_patch_and_fits(focus: int) -> None:
    generator = numpy_generator(0, "flow")
    tables = [table(generator.integers(0, k, 400), k=k) for k in (3, 5, 8)]
    drawn = flow(tables, focus=focus)
    for k in (3, 5, 8):
        column = [node for node in drawn.nodes if node.k == k]
        assert sorted(node.cluster for node in column) == list(range(k))
        assert sum(node.patches for node in column) == 400
        low = max(node.y + node.height for node in column)
        assert MARGIN <= min(node.y for node in column) < low <= HEIGHT - MARGIN + 1e-6
        tops = sorted((node.y, node.height) for node in column)
        assert all(below[0] == pytest.approx(above[0] + above[1] + GAP) for above, below in pairwise(tops))
    for first, second in ((3, 5), (5, 8)):
        bands = [band for band in drawn.bands if band.start[0] == first]
        assert {band.end[0] for band in bands} == {second}
        assert sum(band.patches for band in bands) == 400
    assert all(node.focus == node.cluster for node in drawn.nodes if node.k == focus)


def test_nested_clusters_do_not_cross() -> None:
    coarse = np.repeat([0, 1, 2], 30)
    fine = 2 * coarse + np.tile([0, 1], 45)
    drawn = flow([table(coarse, k=3), table((fine + 3) % 6, k=6)], focus=3)
    height = {(node.k, node.cluster): node.y for node in drawn.nodes}
    ends = sorted((height[band.start], height[band.end]) for band in drawn.bands)
    assert [end for _, end in ends] == sorted(end for _, end in ends)
    assert len(ends) == 6


def test_one_k_alone_is_drawn_too() -> None:
    drawn = flow([table([0, 1, 1], k=2)], focus=2)
    assert (len(drawn.nodes), drawn.bands) == (2, ())
