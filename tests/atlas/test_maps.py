"""Tissue maps: where cells lie, what is drawn there, and the GeoJSON.

Shape suffixes: H and W height and width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image

from histoloom.atlas.maps.overlay import geojson, overlay
from histoloom.atlas.maps.palette import colours
from histoloom.atlas.maps.tissue_groups import NO_GROUP, group_cells, group_patches
from histoloom.atlas.maps.tissue_map import REFINED_CELLS, Classify, boxes, classify_slide, refined
from histoloom.names import Label
from histoloom.names.corrections import NO_TISSUE
from histoloom.seeding import numpy_generator
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.patches.grid import grid
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.scale import Scale
from histoloom.slides.stain.normalise import GLASS, REFERENCES, Macenko, SlideStains


def cells(rows: int, columns: int, *, side: float = 100.0) -> np.ndarray:
    y, x = (index.ravel() * side for index in np.indices((rows, columns)))
    return np.stack([x, y, x + side, y + side], axis=1)


def drawn_areas(boxes_N4: np.ndarray, *, labels_N: np.ndarray, names: dict[int, str]) -> dict[str, Any]:
    """The collection of clusters with names alone."""
    labels = {cluster: Label(name) for cluster, name in names.items()}
    groups = group_patches(labels_N, labels=labels)
    collection: dict[str, Any] = json.loads(geojson(boxes_N4, cells=groups, labels=labels))
    return collection


def areas(drawn: dict[str, Any]) -> dict[str, list[shapely.Polygon]]:
    by_name: dict[str, list[shapely.Polygon]] = {}
    for feature in drawn["features"]:
        name = feature["properties"]["classification"]["name"]
        by_name.setdefault(name, []).append(shapely.geometry.shape(feature["geometry"]))
    return by_name


def test_geojson_joins_cells_of_a_class_and_keeps_holes() -> None:
    labels_HW = np.array(
        [
            [0, 0, 0, 1],
            [0, 1, 0, 1],
            [0, 0, 0, 1],
            [1, 1, 2, 0],
        ]
    )
    order = numpy_generator(0, "test-order").permutation(16)
    names = {0: "bone", 1: "fat", 2: "Fett"}
    drawn = drawn_areas(cells(4, 4)[order], labels_N=labels_HW.ravel()[order], names=names)
    by_name = areas(drawn)
    assert drawn["type"] == "FeatureCollection"
    assert {name: [area.area / 1e4 for area in parts] for name, parts in by_name.items()} == {
        "bone": [8, 1],  # a corner joins nothing
        "fat": [3, 1, 2],
        "Fett": [1],
    }
    ring = by_name["bone"][0]
    assert shapely.equals(ring, shapely.box(0, 0, 300, 300) - shapely.box(100, 100, 200, 200))
    assert [len(part) for part in drawn["features"][0]["geometry"]["coordinates"]] == [5, 5]


@pytest.mark.parametrize("side", [100.0, 37.123456, 1 / 3])
def test_geojson_is_valid_and_covers_every_cell_once(side: float) -> None:
    generator = numpy_generator(1, "test-labels")
    boxes_N4 = cells(20, 30, side=side)
    labels_N = generator.integers(0, 4, len(boxes_N4))
    drawn = drawn_areas(boxes_N4, labels_N=labels_N, names=dict(enumerate("abcd")))
    by_name = areas(drawn)
    by_class = [shapely.union_all(by_name[name]) for name in "abcd"]
    for label, (name, merged) in enumerate(zip("abcd", by_class, strict=True)):
        expected = shapely.union_all(shapely.box(*np.round(boxes_N4[labels_N == label], 2).T))
        assert shapely.is_valid(by_name[name]).all()
        assert shapely.symmetric_difference(merged, expected).area == pytest.approx(0, abs=1e-6)
        assert merged.area == pytest.approx(sum(part.area for part in by_name[name]))
    assert sum(part.area for part in by_class) == pytest.approx(20 * 30 * side**2, rel=0.01 / side)
    assert shapely.union_all(by_class).area == pytest.approx(sum(part.area for part in by_class))
    for feature in drawn["features"]:
        outer, *holes = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] for ring in (outer, *holes))
        assert shapely.LinearRing(outer).is_ccw
        assert not any(shapely.LinearRing(hole).is_ccw for hole in holes)


def test_geojson_is_what_qupath_reads() -> None:
    """The keys are those of QuPath's own export since 0.4 (its QuPathTypeAdapters)."""
    drawn = drawn_areas(cells(1, 1, side=0.125), labels_N=np.array([0]), names={0: "bone"})
    assert drawn == {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[0.0, 0.0], [0.12, 0.0], [0.12, 0.12], [0.0, 0.12], [0.0, 0.0]]],
                },
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": "bone", "color": list(colours(1)[0])},
                },
            }
        ],
    }


def test_clusters_of_one_name_are_one_class_and_gaps_are_kept() -> None:
    boxes_N4 = cells(1, 4)[[0, 1, 3]]
    names = {0: "fat", 1: "bone", 2: "fat"}
    drawn = drawn_areas(boxes_N4, labels_N=np.array([0, 2, 2]), names=names)
    assert [area.bounds for area in areas(drawn)["fat"]] == [(0, 0, 200, 100), (300, 0, 400, 100)]
    assert {tuple(f["properties"]["classification"]["color"]) for f in drawn["features"]} == {colours(1)[0]}


def test_a_cell_whose_middle_lies_in_a_corrected_patch_shows_the_correction() -> None:
    """Of two corrected patches the nearer counts; a patch of another slide gives its name a colour all the same."""
    labels = {0: Label("bone"), 1: Label("fat")}
    corrections = {"elsewhere": "vessel", "a": "lacuna", "b": NO_TISSUE, "c": "Fat"}
    patch_boxes: dict[str, tuple[float, float, float, float]] = {
        "a": (0, 0, 160, 100),
        "b": (110, 0, 210, 100),
        "c": (401, 0, 499, 100),
    }
    found = group_cells(
        np.array([0, 0, 1, 0, 0]),
        boxes_N4=cells(1, 5),
        labels=labels,
        corrections=corrections,
        patch_boxes=patch_boxes,
    )
    assert [group.name for group in found.groups] == ["bone", "fat", "vessel", "lacuna"]
    assert [group.clusters for group in found.groups] == [(0,), (1,), (), ()]
    assert found.group_N.tolist() == [3, NO_GROUP, 1, 0, 1]
    nowhere = group_cells(np.array([0, 1]), boxes_N4=cells(1, 2), labels=labels, corrections={"elsewhere": "vessel"})
    assert nowhere.group_N.tolist() == [0, 1]
    drawn = json.loads(geojson(cells(1, 5), cells=found, labels=labels))
    assert [f["properties"]["classification"]["name"] for f in drawn["features"]] == ["bone", "fat", "fat", "lacuna"]
    assert sum(area.area for parts in areas(drawn).values() for area in parts) == pytest.approx(4 * 1e4)


def test_overlay_tints_and_outlines_areas_and_leaves_the_rest_as_it_is() -> None:
    drawn = overlay(
        np.full((40, 160, 3), 200, dtype=np.uint8),
        boxes_N4=cells(1, 4)[[0, 1, 3]],
        labels_N=np.array([0, 0, 1]),
        colours=colours(2),
        dimensions=(400, 100),
    )
    assert drawn.shape == (40, 160, 3)
    assert (drawn[:, 80:120] == 200).all()
    tinted = np.rint(200 * 0.65 + np.array(colours(2)) * 0.35)
    first, second = drawn[:, :80], drawn[:, 120:]
    assert (first[:, :76] == tinted[0]).all(), "no outline between cells of one label, nor at the picture's border"
    assert (first[:, 76:79] == colours(2)[0]).all()
    assert (first[:, 79] == 255).all()
    assert (second[:, 0] == 255).all()
    assert (second[:, 1:4] == colours(2)[1]).all()
    assert (second[:, 4:] == tinted[1]).all()
    # Cells of a few pixels are tinted alone.
    small = overlay(
        np.full((4, 16, 3), 200, dtype=np.uint8),
        boxes_N4=cells(1, 4),
        labels_N=np.array([0, 1, 0, 1]),
        colours=colours(2),
        dimensions=(400, 100),
    )
    assert (small[:, :4] == tinted[0]).all()
    assert (small[:, 4:8] == tinted[1]).all()


@pytest.mark.parametrize("limit", [4000, 30, 7, 1])
def test_cells_tile_the_slide_and_keep_to_the_limit(tmp_path: Path, limit: int) -> None:
    Image.new("RGB", (1000, 530)).save(tmp_path / "slide.png")
    with open_slide(SlideEntry("slide", tmp_path / "slide.png", patient="", slide="", mpp=1.0)) as slide:
        coarse = grid(slide, size=64, mpp=1.5, limit=limit)
        fine = refined(coarse, dimensions=slide.dimensions, limit=limit)
    sides = boxes(fine, dimensions=(1000, 530))
    assert len(coarse) <= len(fine) <= min(limit, REFINED_CELLS)
    assert ((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])).sum() == pytest.approx(1000 * 530)
    corners = np.stack([fine.x, fine.y], axis=1)
    assert corners.min() >= 0
    assert (corners + fine.extent <= [1000 + 1e-9, 530 + 1e-9]).all()
    middles = (sides[:, :2] + sides[:, 2:]) / 2
    inside = (corners <= middles) & (middles <= corners + fine.extent)
    assert inside.all()


def test_a_slide_is_classified_where_its_tissue_is(tmp_path: Path, label: Classify) -> None:
    image_HW3 = np.full((256, 384, 3), 250, dtype=np.uint8)
    image_HW3[:, :192] = 20
    Image.fromarray(image_HW3).save(tmp_path / "half.png")
    slide_map = classify_slide(
        tmp_path / "half.png", classify=label, size=32, mpp=1.0, limit=4000, scale=Scale(1.0, "given")
    )
    middles = (slide_map.boxes_N4[:, 0] + slide_map.boxes_N4[:, 2]) / 2
    np.testing.assert_array_equal(slide_map.labels[2], (middles > 192).astype(int))
    assert set(slide_map.labels) == {2, 4}
    assert slide_map.thumbnail.shape == (256, 384, 3)


def test_a_slide_without_scale_says_so(tmp_path: Path, label: Classify) -> None:
    Image.new("RGB", (128, 128)).save(tmp_path / "slide.png")
    with pytest.raises(SlideError, match="mpp"):
        classify_slide(tmp_path / "slide.png", classify=label, size=32, mpp=1.0, limit=100)


def test_a_slide_is_classified_in_the_reference_stain(tmp_path: Path) -> None:
    """A slide that is known to be pale is darkened before its patches are labelled; an unknown one that shows no
    stain is left as it is.
    """
    Image.new("RGB", (64, 64), (200, 150, 190)).save(tmp_path / "slide.png")
    reference = REFERENCES["macenko"]
    assert isinstance(reference, Macenko)
    pale = Macenko((GLASS,) * 3, reference.haematoxylin, reference.eosin, (1.0, 0.5))
    known = SlideStains("macenko", reference, {"pale": pale})
    seen: dict[str, float] = {}
    for name in ("pale", "stranger"):

        def label(patches: np.ndarray, fields: np.ndarray | None, name: str = name) -> dict[int, np.ndarray]:
            assert fields is None
            seen[name] = float(patches.mean())
            return {2: np.zeros(len(patches), int)}

        classify_slide(
            tmp_path / "slide.png",
            classify=label,
            size=32,
            mpp=1.0,
            limit=4,
            scale=Scale(1.0, "given"),
            stains=known,
            name=name,
        )
    assert seen["stranger"] == pytest.approx(180)
    assert seen["pale"] < 150
