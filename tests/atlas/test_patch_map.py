"""The 2-D map of patches: where they lie, their thumbnails, what it says in words."""

from __future__ import annotations

import base64
import importlib.util
import io
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from histoloom.atlas.maps.embedding import embed, neighbours
from histoloom.atlas.maps.patch_map import (
    COLUMNS,
    TILE,
    Embedding,
    central_patches,
    neighbour_shares,
    patch_map,
    points,
    sprite_of,
    thumbnail,
)
from histoloom.errors import UserError
from histoloom.seeding import numpy_generator

LABELS_N = np.repeat(np.arange(3), 20)


def groups() -> np.ndarray:
    """Three groups in 60 dimensions."""
    return numpy_generator(0, "groups").standard_normal((60, 60)) + 20 * np.eye(3, 60)[LABELS_N]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_groups_stay_together_and_maps_repeat(method: str) -> None:
    xy_N2 = embed(groups(), method=method, seed=0)
    assert xy_N2.shape == (60, 2)
    np.testing.assert_allclose([xy_N2.min(axis=0), xy_N2.max(axis=0)], [[0, 0], [1, 1]], atol=1e-12)
    assert (LABELS_N[neighbours(xy_N2)] == LABELS_N[:, None]).mean() > 0.95
    np.testing.assert_array_equal(embed(groups(), method=method, seed=0), xy_N2)


def test_principal_components_are_those_of_scikit_learn() -> None:
    expected_N2 = PCA(2).fit_transform(groups())
    found_N2 = embed(groups(), method="pca", seed=0)
    assert np.abs(np.corrcoef(found_N2.T, expected_N2.T)[:2, 2:]).round(6).tolist() == np.eye(2).tolist()


def test_a_feature_alone_has_a_map_too() -> None:
    xy_N2 = embed(np.arange(12.0)[:, None], method="pca", seed=0)
    assert sorted(xy_N2[:, 0]) == pytest.approx(np.linspace(0, 1, 12))
    assert set(xy_N2[:, 1]) == {0.5}


def test_umap_says_how_to_get_it() -> None:
    if importlib.util.find_spec("umap"):
        pytest.skip("UMAP is installed")
    with pytest.raises(UserError, match=r"pip install 'histoloom\[umap\]'"):
        embed(groups(), method="umap", seed=0)


def test_every_thumbnail_is_at_its_point() -> None:
    grey_N = [int(value) for value in np.linspace(0, 255, COLUMNS + 3)]
    tiles = [thumbnail(np.full((64, 64, 3), grey, np.uint8)) for grey in grey_N]
    source, size = sprite_of(tiles)
    assert size == (COLUMNS * TILE, 2 * TILE)
    drawn = points(np.zeros((len(tiles), 2)), labels_N=np.zeros(len(tiles), int), texts=[""] * len(tiles))
    places = sorted((int(y), int(x)) for x, y in re.findall(r"--p:-(\d+)px -(\d+)px", drawn))
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        sheet_HW = np.asarray(image.convert("L")).astype(int)
    for grey, (y, x) in zip(grey_N, places, strict=True):
        assert np.abs(sheet_HW[y : y + TILE, x : x + TILE] - grey).max() <= 3


def test_the_keyboard_reaches_one_patch_a_cluster_and_names_are_escaped() -> None:
    xy_N2 = embed(groups(), method="pca", seed=0)
    drawn = points(xy_N2, labels_N=LABELS_N, texts=[f"group {label}, <b>" for label in LABELS_N])
    assert drawn.count("<i ") == drawn.count("</i>") == 60
    assert re.findall(r'tabindex="0" role="img" aria-label="([^"]*)"', drawn) == [
        f"Central patch of group {cluster}, &lt;b&gt;" for cluster in range(3)
    ]
    for cluster, row in central_patches(xy_N2, labels_N=LABELS_N).items():
        assert LABELS_N[row] == cluster


def test_the_map_in_words_by_hand() -> None:
    """Four patches in a row: the third, of cluster 1, lies between the two kinds."""
    labels_N = np.array([0, 0, 1, 1])
    near_N1 = np.array([[1], [0], [1], [2]])
    first, second = neighbour_shares(labels_N, neighbours_Nn=near_N1, map_neighbours=[near_N1[[0, 1, 3, 3]]])
    assert (first.patches, first.in_features, first.in_maps, first.by_chance, first.nearest_cluster) == (
        2,
        1.0,
        (1.0,),
        0.5,
        None,
    )
    assert (second.patches, second.in_features, second.in_maps, second.nearest_cluster) == (2, 0.5, (1.0,), 0)


def test_a_full_map_stays_small() -> None:
    """1,500 patches of noise, which compresses worse than any tissue."""
    rng = numpy_generator(0, "noise")
    n = 1500
    tiles = [thumbnail(rng.integers(0, 256, (TILE, TILE, 3)).astype(np.uint8)) for _ in range(n)]
    maps = {"pca": rng.random((n, 2)), "tsne": rng.random((n, 2))}
    near_Nn = rng.integers(0, n, (n, 10))
    drawn = patch_map(
        Embedding({}, [str(row) for row in range(n)], maps, near_Nn),
        labels_N=rng.integers(0, 16, n),
        map_neighbours=dict.fromkeys(maps, near_Nn),
        thumbnails=tiles,
        texts=["slide"] * n,
        features="noise",
    )
    assert sum(len(panel.points) for panel in drawn.panels) < 300_000
    assert len(drawn.sprite) < 6_000_000
