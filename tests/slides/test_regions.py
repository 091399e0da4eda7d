"""Patches from regions that someone has drawn: GeoJSON of QuPath, masks, and slides without either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.config import Config, identity
from histoloom.errors import SlidesAbsent, UserError
from histoloom.run.stage import StageContext
from histoloom.slides import stage
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.find import find_slides, inventory_fingerprint
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.regions import NO_REGIONS, RegionFiles, Regions, read_regions

SIZE = (1000, 500)
SHAPE = (50, 100)  # 10 px of the slide a place


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(*rings: list[list[float]], name: str | None = None, **properties: Any) -> dict[str, Any]:
    kind = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"} | kind | properties}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def read(tmp_path: Path, values: object, *, origin: tuple[int, int] = (0, 0)) -> Regions:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(values), encoding="utf-8")
    return read_regions(path, dimensions=SIZE, origin=origin, shape_hw=SHAPE)


def names_at(regions: Regions, x: float, y: float) -> str | None:
    number = int(regions.labels.unpacked()[int(y / 10), int(x / 10)])
    return regions.names[number - 1] if number else None


def test_polygons_holes_and_parts_have_their_places_and_names(tmp_path: Path) -> None:
    bone = feature(box(100, 100, 500, 400), box(200, 200, 300, 300), name="Bone")
    parts = {"type": "MultiPolygon", "coordinates": [[box(600, 0, 700, 100)], [box(800, 0, 900, 100)]]}
    regions = read(tmp_path, collection(bone, feature(name="Fat") | {"geometry": parts}))
    assert regions.names == ("Bone", "Fat")
    found = {at: names_at(regions, *at) for at in ((150, 150), (250, 250), (650, 50), (750, 50), (850, 50), (5, 5))}
    assert found == dict(zip(found, ("Bone", None, "Fat", None, "Fat", None), strict=True))
    assert regions.inside_hw.sum() * 100 == 400 * 300 - 100 * 100 + 2 * 100 * 100


def test_the_smaller_of_two_regions_has_the_place_and_ignored_ones_take_it_away(tmp_path: Path) -> None:
    small, large = feature(box(100, 100, 200, 200), name="Nest"), feature(box(0, 0, 500, 500), name="Tumour")
    for name in ("Ignore*", "ignored"):
        regions = read(tmp_path, collection(small, large, feature(box(400, 0, 500, 500), name=name)))
        assert [names_at(regions, x, 150) for x in (50, 150, 350, 450, 600)] == ["Tumour", "Nest", "Tumour", None, None]


def test_with_ignored_regions_alone_the_rest_is_inside_and_with_an_empty_file_all(tmp_path: Path) -> None:
    rest = read(tmp_path, [feature(box(0, 0, 500, 500), name="Ignore*")])
    assert [names_at(rest, x, 100) for x in (100, 900)] == [None, ""]
    empties: tuple[object, ...] = ([], collection())
    for empty in empties:
        assert read(tmp_path, empty).inside_hw.all()


def test_qupath_counts_from_the_scanned_part(tmp_path: Path) -> None:
    regions = read(tmp_path, feature(box(0, 0, 100, 100)), origin=(300, 200))
    assert [names_at(regions, *at) for at in ((50, 50), (350, 250))] == [None, ""]


def test_detections_points_and_crossing_outlines(tmp_path: Path) -> None:
    cell = feature(box(0, 0, 100, 100), objectType="detection")
    point = feature() | {"geometry": {"type": "Point", "coordinates": [5, 5]}}
    bow = feature([[300, 100], [500, 300], [500, 100], [300, 300], [300, 100]])  # crosses itself in the middle
    regions = read(tmp_path, collection(cell, point, bow))
    assert [names_at(regions, *at) for at in ((50, 50), (315, 200), (485, 200), (400, 120))] == [None, "", "", None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        '{"type": "Feature"',
        '{"features": 1}',
        '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, "a"]]]}}]',
        "[[[]], 4]",
    ],
)
def test_what_is_no_geojson_is_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "secret.geojson"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SlideError, match="its regions cannot be read; export them from QuPath") as caught:
        read_regions(path, dimensions=SIZE, origin=(0, 0), shape_hw=SHAPE)
    assert "secret" not in caught.value.reason
    assert "secret" in str(caught.value)


@pytest.mark.parametrize("side", [20, 333, 2000])
@pytest.mark.parametrize("kind", ["png", "tif", "colour", "pyramid"])
def test_masks_of_any_scale(side: int, kind: str, tmp_path: Path) -> None:
    mask_hw = np.zeros((side // 2, side), np.uint8)
    mask_hw[:, : side // 2] = 255
    path = tmp_path / ("a.png" if kind in ("png", "colour") else "a.tif")
    if kind == "png":
        Image.fromarray(mask_hw).save(path)
    elif kind == "colour":
        Image.fromarray(np.stack([0 * mask_hw, mask_hw, 0 * mask_hw], axis=2)).save(path)
    else:
        with tifffile.TiffWriter(path) as tiff:
            levels = 2 if kind == "pyramid" else 1
            for level in range(levels):
                options: dict[str, Any] = {"subifds": levels - 1} if level == 0 else {"subfiletype": 1}
                tiff.write(mask_hw[:: 2**level, :: 2**level], tile=(64, 64), **options)
    regions = read_regions(path, dimensions=SIZE, origin=(0, 0), shape_hw=SHAPE)
    assert regions.names == ("",)
    assert regions.inside_hw[:, :48].all()
    assert not regions.inside_hw[:, 52:].any()


def test_values_of_a_mask_are_names_and_other_proportions_are_refused(tmp_path: Path) -> None:
    mask_hw = np.zeros((50, 100), np.uint8)
    mask_hw[:20, :10], mask_hw[30:] = 3, 7
    Image.fromarray(mask_hw).save(tmp_path / "a.png")
    regions = read_regions(tmp_path / "a.png", dimensions=SIZE, origin=(0, 0), shape_hw=SHAPE)
    assert [names_at(regions, *at) for at in ((50, 50), (50, 400), (500, 50))] == ["3", "7", None]
    with pytest.raises(SlideError, match="100 x 50 px, other proportions than the slide"):
        read_regions(tmp_path / "a.png", dimensions=(500, 500), origin=(0, 0), shape_hw=(50, 50))


def test_files_are_found_by_the_slides_name(tmp_path: Path) -> None:
    for name in ("a.geojson", "a.png", "b.svs.json", "notes.txt"):
        (tmp_path / name).touch()
    files = RegionFiles(str(tmp_path))
    found = [files.of(Path(name)) for name in ("x/a.svs", "x/b.svs", "x/b.tif", "notes.svs")]
    assert found == [tmp_path / "a.geojson", tmp_path / "b.svs.json", None, None]
    with pytest.raises(SlidesAbsent, match="no such file or folder of regions"):
        RegionFiles(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no file of regions; they end in"):
        RegionFiles(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("tissue", ["all", "detect"])
def test_patches_lie_inside_regions_and_keep_their_names(
    tissue: str, slide_folder: Path, configured: Callable[..., Config], context: Callable[..., StageContext]
) -> None:
    """Slide a has a named region and one that is ignored in it, b no file; c is whole."""
    folder = slide_folder.parent / "regions"
    folder.mkdir()
    inside, hole = box(64, 64, 200, 160), box(64, 64, 110, 160)
    a = collection(feature(inside, name="Stroma"), feature(hole, name="Ignore*"))
    (folder / "a.geojson").write_text(json.dumps(a), encoding="utf-8")
    (folder / "c.tif.geojson").write_text("[]", encoding="utf-8")
    patches = {"tissue": tissue, "count": None, "per_slide": 40, "min_region": 1.0, "background_share": 0.0}
    config = configured(slide_folder, patches=patches, slides={"regions": str(folder)})
    entries = {entry.slide_id: entry for entry in find_slides(config.slides)}
    assert [entries[name].status for name in "abc"] == ["ok", NO_REGIONS, "ok"]

    made = context(config)
    stage.run(made)
    table = PatchSet.open(made.out).table
    of_a = table[table["slide_id"] == "a"]
    assert len(of_a) == 40
    assert set(of_a["region"]) == {"Stroma"}
    assert of_a["x"].between(109, 200 - 31).all()  # a mask's place is a pixel of the slide here
    assert of_a["y"].between(63, 160 - 31).all()
    assert set(table[table["slide_id"] == "c"]["region"]) == {""}


def test_what_was_drawn_is_part_of_the_fingerprint_and_runs_without_regions_keep_theirs(
    slide_folder: Path, configured: Callable[..., Config]
) -> None:
    folder = slide_folder.parent / "regions"
    folder.mkdir()
    file = folder / "a.geojson"
    plain = configured(slide_folder)
    config = configured(slide_folder, slides={"regions": str(folder)})
    assert "min_region" not in identity(plain)["patches"]
    assert identity(configured(slide_folder, patches={"min_region": 0.9}))["patches"]["min_region"] == 0.9
    digests = []
    for text in ("[]", json.dumps([feature(box(0, 0, 50, 50))])):
        file.write_text(text, encoding="utf-8")
        digests.append(inventory_fingerprint(config.slides))
    assert len({inventory_fingerprint(plain.slides), *digests}) == 3
