"""Maps that come back from QuPath: renamed classes, renamed, moved, deleted and new areas."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from histoloom.atlas.maps.corrections import Corrections, MapSource, import_map, kept_map
from histoloom.atlas.maps.overlay import geojson
from histoloom.atlas.maps.tissue_groups import group_cells, group_patches
from histoloom.cli.app import app
from histoloom.errors import UserError
from histoloom.names import add_name, clustering_of, current_labels, current_names
from histoloom.names.corrections import FILE, NO_TISSUE, correct, current_corrections, undo_correction
from histoloom.run.directory import Run, write_text
from histoloom.slides.patch_set import PatchSet

Features = list[dict[str, Any]]
WIDTH, HEIGHT, SIDE = 160, 128, 32


@pytest.fixture
def drawn(finished: Run) -> Features:
    """The map of slide-0 as the run keeps it: cluster 0 on the left and at the right edge, cluster 1 between."""
    add_name(finished.path, cluster=0, name="bone", k=2, rater="A")
    boxes_N4 = np.array([[0, 0, 64, HEIGHT], [64, 0, 128, HEIGHT], [128, 0, WIDTH, HEIGHT]], float)

    def metadata(clusters: tuple[int, ...]) -> dict[str, str]:
        return {MapSource.KEY: str(MapSource("slide-0", 2, clusters, (0, 0), clustering_of(finished.path)))}

    labels = current_labels(finished.path, k=2)
    cells = group_patches(np.array([0, 1, 0]), labels=labels)
    text = geojson(boxes_N4, cells=cells, labels=labels, metadata=metadata)
    kept = kept_map(finished.path, slide="slide-0", k=2)
    kept.parent.mkdir()
    write_text(kept, text)
    features: Features = json.loads(text)["features"]
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["bone", "bone", "cluster 1"]
    return features


def back(run: Run, features: Features, *, rater: str = "B") -> Corrections:
    """Import what QuPath exports: a list of features."""
    file = run.path.parent / "edited.geojson"
    file.write_text(json.dumps(features), encoding="utf-8")
    return import_map(run.path, file, patches=PatchSet.open(run.folder("patches")), rater=rater)


def rename(feature: dict[str, Any], name: str | None) -> None:
    feature["properties"]["classification"] = None if name is None else {"name": name, "color": [9, 9, 9]}


def middles(run: Run) -> dict[str, float]:
    """x of the middle of each patch of slide-0."""
    table = PatchSet.open(run.folder("patches")).table
    table = table[table["slide_id"] == "slide-0"]
    return dict(zip(table["patch_id"], table["x"] + SIDE / 2, strict=True))


def test_an_unchanged_map_changes_nothing(finished: Run, drawn: Features) -> None:
    result = back(finished, drawn)
    assert (result.renamed, result.corrected, result.patches) == ({}, 0, 24)
    assert not (finished.path / FILE).exists()


def test_a_class_that_is_renamed_everywhere_names_its_cluster(finished: Run, drawn: Features) -> None:
    rename(drawn[2], "fat")
    result = back(finished, drawn)
    assert (result.renamed, result.corrected) == ({1: "fat"}, 0)
    assert current_names(finished.path, k=2) == {0: "bone", 1: "fat"}


def test_one_of_several_areas_corrects_patches_and_names_no_cluster(finished: Run, drawn: Features) -> None:
    rename(drawn[1], "cartilage")  # the right edge
    result = back(finished, drawn)
    right = {patch for patch, x in middles(finished).items() if x >= 128}
    assert right
    assert (result.renamed, result.corrected) == ({}, len(right))
    assert current_corrections(finished.path, k=2) == dict.fromkeys(right, "cartilage")
    assert current_corrections(finished.path, k=4) == {}
    undo_correction(finished.path, k=2, rater="B")
    assert current_corrections(finished.path, k=2) == {}


def test_deleted_moved_and_new_areas(finished: Run, drawn: Features) -> None:
    """The edge is deleted, the middle ends further left, and a small area lies in what is left of it."""
    middle = drawn[2]
    middle["geometry"]["coordinates"] = [[[64, 0], [100, 0], [100, HEIGHT], [64, HEIGHT], [64, 0]]]
    nest = [[70, 0], [80, 0], [80, HEIGHT], [70, HEIGHT], [70, 0]]
    new = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [nest]}, "properties": {}}
    rename(new, "vessel")
    back(finished, [drawn[0], middle, new])
    expected = {
        patch: "vessel" if 70 < x < 80 else NO_TISSUE
        for patch, x in middles(finished).items()
        if 70 < x < 80 or x > 100
    }
    assert {NO_TISSUE, "vessel"} == set(expected.values())
    assert current_corrections(finished.path, k=2) == expected


@pytest.mark.usefixtures("drawn")
def test_a_map_that_shows_corrections_comes_back_without_new_ones(finished: Run) -> None:
    """Patches that were corrected to the name of a class follow it, and a second import takes the first one back."""
    second, *_ = right = [patch for patch, x in middles(finished).items() if x >= 128]
    correct(finished.path, patches=right, target="lacuna", k=2, rater="A")
    correct(finished.path, patches=[second], target="bone", k=2, rater="A")
    labels, kept = current_labels(finished.path, k=2), kept_map(finished.path, slide="slide-0", k=2)
    table = PatchSet.open(finished.folder("patches")).table.set_index("patch_id")
    places = zip(right, table["x"][right].astype(float), table["y"][right].astype(float), strict=True)
    cell = {patch: (x + 15, y + 15, x + 17, y + 17) for patch, x, y in places}
    boxes_N4 = np.array([[0, 0, 64, HEIGHT], *cell.values()], float)
    shown = group_cells(
        np.zeros(len(boxes_N4), int),
        boxes_N4=boxes_N4,
        labels=labels,
        corrections=current_corrections(finished.path, k=2),
        patch_boxes=cell,
    )

    def metadata(clusters: tuple[int, ...]) -> dict[str, str]:
        return {MapSource.KEY: str(MapSource("slide-0", 2, clusters, (0, 0), clustering_of(finished.path)))}

    text = geojson(boxes_N4, cells=shown, labels=labels, metadata=metadata)
    write_text(kept, text)
    features: Features = json.loads(text)["features"]
    journal = (finished.path / FILE).read_bytes()
    assert back(finished, features).corrected == 0
    assert (finished.path / FILE).read_bytes() == journal

    # The class gets another name, and so does one patch; then that one is as on the map again.
    for feature in features:
        if feature["properties"]["classification"]["name"] == "bone":
            rename(feature, "marrow")
    lacunae = [feature for feature in features if feature["properties"]["classification"]["name"] == "lacuna"]
    assert {feature["properties"]["metadata"]["histoloom"].split()[1] for feature in lacunae} == {"-"}
    rename(lacunae[0], "vessel")
    result = back(finished, features)
    assert result.renamed == {0: "marrow"}
    now = current_corrections(finished.path, k=2)
    assert now[second] == "marrow"
    assert sorted(set(now.values())) == ["lacuna", "marrow", "vessel"]
    rename(lacunae[0], "lacuna")
    back(finished, features)
    assert current_corrections(finished.path, k=2) == dict.fromkeys(right, "lacuna") | {second: "marrow"}


def test_a_second_import_takes_the_place_of_the_raters_first(finished: Run, drawn: Features) -> None:
    rename(drawn[1], "cartilage")
    first = back(finished, drawn).corrected
    back(finished, drawn, rater="C")
    rename(drawn[1], "cluster 1")
    assert back(finished, drawn).corrected == first
    assert set(current_corrections(finished.path, k=2).values()) == {"cluster 1"}
    add_name(finished.path, cluster=1, name="fat", k=2, rater="A")
    assert set(current_corrections(finished.path, k=2).values()) == {"fat"}, "the cluster is meant, not its name"
    rename(drawn[1], "bone")
    assert back(finished, drawn).corrected == 0
    assert current_corrections(finished.path, k=2) == {}
    undo_correction(finished.path, k=2, rater="B")
    assert len(current_corrections(finished.path, k=2)) == first


def test_what_is_no_map_of_this_run_is_refused_and_nothing_is_written(finished: Run, drawn: Features) -> None:
    def refused(features: Features, message: str) -> None:
        with pytest.raises(UserError, match=message):
            back(finished, features)

    journal = (finished.path / "names.jsonl").read_bytes()
    own = json.loads(json.dumps(drawn))
    for feature in own:
        feature["properties"]["metadata"] = {"histoloom": "2 x y"}
    refused(own, "has no area that histoloom map has made")
    other = json.loads(json.dumps(drawn).replace(" slide-0", " slide-1"))
    refused([*drawn, *other], "several maps")
    refused(other, "the run keeps no map of slide-1 at k = 2")
    outside = finished.path.parent / "outside-k2.geojson"
    outside.write_text(json.dumps(drawn), encoding="utf-8")
    escaping = json.loads(json.dumps(drawn).replace(" slide-0", " ../../outside"))
    assert kept_map(finished.path, slide="../../outside", k=2).is_file()
    refused(escaping, "the run keeps no map of ../../outside at k = 2")
    stale = json.loads(json.dumps(drawn).replace(f"{clustering_of(finished.path)} slide", "0123 slide"))
    refused(stale, "a map of other clusters")
    rename(drawn[2], "x" * 5000)
    refused(drawn, "name")
    refused([{"type": "Feature"}, 3], "cannot be read")  # type: ignore[list-item]
    assert (finished.path / "names.jsonl").read_bytes() == journal
    assert not (finished.path / FILE).exists()


def test_the_command_says_what_was_changed(finished: Run, drawn: Features) -> None:
    rename(drawn[2], "fat")
    file = finished.path.parent / "edited.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": drawn[:1] + drawn[2:]}), encoding="utf-8")
    said = CliRunner().invoke(app, ["names", str(finished.path), "--import", str(file), "--rater", "B"])
    assert said.exit_code == 0, said.output
    right = sum(x >= 128 for x in middles(finished).values())
    assert "cluster 1 of k = 2 is 'fat'" in said.output
    assert (
        f"{right} of 24 patches of slide-0 have another name than their cluster: {finished.path / FILE}" in said.output
    )
