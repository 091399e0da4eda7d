"""Tissue maps: where cells lie, what is drawn there, and the GeoJSON.

Shape suffixes: H and W height and width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoloom.atlas import maps
from histoloom.atlas.palette import colours
from histoloom.atlas.tissue_map import DETAILED, boxes, classify_slide, refined
from histoloom.slides.entries import SlideError
from histoloom.slides.grid import grid
from histoloom.slides.readers import open_slide


def cells(rows: int, columns: int, *, side: float = 100.0) -> np.ndarray:
    y, x = (index.ravel() * side for index in np.indices((rows, columns)))
    return np.stack([x, y, x + side, y + side], axis=1)


def test_geojson_joins_neighbours_of_a_class_in_a_row() -> None:
    boxes_N4 = cells(2, 4)
    order = np.array([5, 0, 3, 1, 7, 2, 6, 4])
    labels = np.array([0, 0, 1, 0, 1, 1, 1, 2])
    names = {0: "bone", 1: "fat", 2: "Fett"}
    drawn = maps.geojson(boxes_N4[order], labels_N=labels[order], names=names, colours=colours(3))
    found = [
        (
            f["properties"]["classification"]["name"],
            f["geometry"]["coordinates"][0][0],
            f["geometry"]["coordinates"][0][2],
        )
        for f in drawn["features"]
    ]
    assert drawn["type"] == "FeatureCollection"
    assert found == [
        ("bone", [0.0, 0.0], [200.0, 100.0]),
        ("fat", [200.0, 0.0], [300.0, 100.0]),
        ("bone", [300.0, 0.0], [400.0, 100.0]),
        ("fat", [0.0, 100.0], [300.0, 200.0]),
        ("Fett", [300.0, 100.0], [400.0, 200.0]),
    ]


def test_geojson_is_what_qupath_reads() -> None:
    drawn = maps.geojson(cells(1, 1, side=0.125), labels_N=np.array([0]), names={0: "bone"}, colours=colours(1))
    (feature,) = drawn["features"]
    ring = feature["geometry"]["coordinates"][0]
    assert feature["geometry"]["type"] == "Polygon"
    assert ring[0] == ring[-1]
    assert len(ring) == 5
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2
    assert area > 0
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "bone", "color": [230, 159, 0]},
    }


def test_clusters_of_one_name_are_one_class_and_gaps_are_kept() -> None:
    boxes_N4 = cells(1, 4)[[0, 1, 3]]
    names = {0: "fat", 1: "bone", 2: "fat"}
    drawn = maps.geojson(boxes_N4, labels_N=np.array([0, 2, 2]), names=names, colours=colours(3))
    spans = [(f["geometry"]["coordinates"][0][0][0], f["geometry"]["coordinates"][0][1][0]) for f in drawn["features"]]
    assert spans == [(0.0, 200.0), (300.0, 400.0)]
    assert {tuple(f["properties"]["classification"]["color"]) for f in drawn["features"]} == {colours(1)[0]}


def test_overlay_colours_cells_and_leaves_the_rest_clear() -> None:
    layer = maps.overlay(
        cells(1, 2)[:1],
        labels_N=np.array([1]),
        colours=colours(2),
        dimensions=(200, 100),
        shape=(10, 20),
        opacity=0.5,
    )
    assert layer.shape == (10, 20, 4)
    assert (layer[:, :10] == (*colours(2)[1], 128)).all()
    assert (layer[:, 10:] == 0).all()
    picture = np.full((10, 20, 3), 200, dtype=np.uint8)
    mixed = maps.blend(picture, layer_HW4=layer)
    assert (mixed[:, 10:] == 200).all()
    expected = np.rint(200 * (127 / 255) + np.array(colours(2)[1]) * (128 / 255))
    np.testing.assert_array_equal(mixed[0, 0], expected)


@pytest.mark.parametrize("limit", [4000, 30, 7, 1])
def test_cells_tile_the_slide_and_keep_to_the_limit(tmp_path: Path, limit: int) -> None:
    Image.new("RGB", (1000, 530)).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png", mpp=1.0) as slide:
        coarse = grid(slide, size=64, mpp=1.5, limit=limit)
        fine = refined(coarse, dimensions=slide.dimensions, limit=limit)
    sides = boxes(fine, dimensions=(1000, 530))
    assert len(coarse) <= len(fine) <= min(limit, DETAILED)
    assert ((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])).sum() == pytest.approx(1000 * 530)
    corners = np.stack([fine.x, fine.y], axis=1)
    assert corners.min() >= 0
    assert (corners + fine.extent <= [1000 + 1e-9, 530 + 1e-9]).all()
    middles = (sides[:, :2] + sides[:, 2:]) / 2
    inside = (corners <= middles) & (middles <= corners + fine.extent)
    assert inside.all()


def test_a_slide_is_classified_where_its_tissue_is(
    tmp_path: Path, label: Callable[[np.ndarray], dict[int, np.ndarray]]
) -> None:
    image_HW3 = np.full((256, 384, 3), 250, dtype=np.uint8)
    image_HW3[:, :192] = 20
    Image.fromarray(image_HW3).save(tmp_path / "half.png")
    found = classify_slide(tmp_path / "half.png", label=label, size=32, mpp=1.0, limit=4000, source_mpp=1.0)
    middles = (found.boxes_N4[:, 0] + found.boxes_N4[:, 2]) / 2
    np.testing.assert_array_equal(found.labels[2], (middles > 192).astype(int))
    assert set(found.labels) == {2, 4}
    assert found.thumbnail.shape == (256, 384, 3)


def test_a_slide_without_scale_says_so(tmp_path: Path, label: Callable[[np.ndarray], dict[int, np.ndarray]]) -> None:
    Image.new("RGB", (128, 128)).save(tmp_path / "slide.png")
    with pytest.raises(SlideError, match="mpp"):
        classify_slide(tmp_path / "slide.png", label=label, size=32, mpp=1.0, limit=100)
