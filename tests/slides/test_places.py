"""Patches at places that another program chose: HDF5 as TRIDENT and CLAM write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from histoloom.config import Config, make_config
from histoloom.errors import SlidesAbsent, UserError
from histoloom.run.stage import StageContext
from histoloom.slides import stage
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.inventory import pseudonyms
from histoloom.slides.inventory.find import find_slides, inventory_fingerprint
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.places import NO_PLACES, PlaceFiles, Places, read_places

CORNERS = [[64, 32], [0, 0], [100, 90]]
TRIDENT = {"patch_size": 16, "patch_size_level0": 32, "level0_magnification": 20, "target_magnification": 10}
CLAM = {"patch_size": 16, "patch_level": 1, "downsample": (2.0, 2.0)}


def write(path: Path, corners: object = CORNERS, **attributes: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=np.asarray(corners)).attrs.update(attributes or TRIDENT)
    return path


def read(path: Path, *, extent: float = 32.0) -> Places:
    return read_places(path, dimensions=(256, 224), extent=extent, size=16, source_mpp=0.5)


@pytest.mark.parametrize("attributes", [TRIDENT, CLAM, {"patch_size": 32, "patch_level": 0}, {"patch_size_level0": 32}])
def test_both_programs_say_how_large_the_patches_are(attributes: dict[str, object], tmp_path: Path) -> None:
    places = read(write(tmp_path / "a.h5", **attributes))
    assert (places.corner_N2.tolist(), places.extent) == (CORNERS, 32)
    assert read(tmp_path / "a.h5", extent=31.68).extent == 31.68  # rounded to whole px in the file
    assert read(tmp_path / "a.h5", extent=30.0).extent == 32  # nominal magnifications: as the file says


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        SlideError, match=r"places have 32 px of level 0, 16 um, .* set patches.mpp=1 for patches.size=16"
    ):
        read(write(tmp_path / "a.h5"), extent=16.0)
    for corners, words in (
        ([[0, 0], [256, 0]], "1 of its 2 places lie outside of the slide, which has 256 x 224 px"),
        ([[-1, 0]], "outside of the slide"),
        ([[0.5, 0]], "no table of x and y in whole px"),
        ([1, 2, 3], "no table of x and y"),
        (np.zeros((0, 2), int), "none of its 0 places"),
    ):
        with pytest.raises(SlideError, match=words):
            read(write(tmp_path / "a.h5", corners))
    with pytest.raises(SlideError, match="do not say the patches' size"):
        read(write(tmp_path / "a.h5", patch_size=16, patch_level=1))
    (tmp_path / "b.h5").write_text("no HDF5", encoding="utf-8")
    with pytest.raises(SlideError, match="its places cannot be read"):
        read(tmp_path / "b.h5")


def test_places_count_once_and_patches_over_the_edge_are_left_out(tmp_path: Path) -> None:
    places = read(write(tmp_path / "a.h5", [[230, 0], *CORNERS, *CORNERS]))
    assert (places.corner_N2.tolist(), places.left_out) == (CORNERS, 1)


def test_files_are_found_by_the_slides_name(tmp_path: Path) -> None:
    for name in ("a_patches.h5", "b.svs.h5", "c.h5", "s12.h5"):
        write(tmp_path / "patches" / name)
    files = PlaceFiles(str(tmp_path))
    slides = [
        SlideEntry(slide_id, Path(name), "p", "s")
        for slide_id, name in (("x", "a.svs"), ("x", "b.svs"), ("x", "c.ome.tif"), ("s12", "d.svs"), ("x", "d.svs"))
    ]
    found = [file and file.name for file in map(files.of, slides)]
    assert found == ["a_patches.h5", "b.svs.h5", "c.h5", "s12.h5", None]
    write(tmp_path / "patches" / "a.h5")
    with pytest.raises(UserError, match="both hold places of a; move one away"):
        PlaceFiles(str(tmp_path))
    with pytest.raises(SlidesAbsent, match="no such folder of places"):
        PlaceFiles(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no NAME_patches"):
        PlaceFiles(str(tmp_path / "empty"))


@pytest.mark.parametrize("tissue", ["all", "detect"])
def test_patches_are_taken_at_these_places_alone(
    tissue: str, slide_folder: Path, configured: Callable[..., Config], context: Callable[..., StageContext]
) -> None:
    """Slide b has no file, that of c is of a larger slide. More places than patches.count are all taken."""
    folder = slide_folder.parent / "places"
    write(folder / "a_patches.h5")
    write(folder / "c_patches.h5", [[1000, 0]])
    patches = {"tissue": tissue, "count": 3, "filters": {"blur": None, "pen": None}, "split": {"holdout": 0.0}}
    config = configured(slide_folder, patches=patches, slides={"places": str(folder)})
    made = context(config)
    stage.run(made)
    patch_set = PatchSet.open(made.out)
    table, slides = patch_set.table, patch_set.slides.set_index("slide_id")
    assert table[["x", "y"]].to_numpy().tolist() == CORNERS
    assert set(table["extent"]) == {32.0}
    assert slides.loc["b", "status"] == NO_PLACES
    assert "lie outside of the slide" in str(slides.loc["c", "status"])
    assert patch_set.images([0]).shape == (1, 16, 16, 3)


def test_places_are_part_of_the_fingerprint_and_runs_without_keep_theirs(
    slide_folder: Path, configured: Callable[..., Config]
) -> None:
    folder = slide_folder.parent / "places"
    plain = configured(slide_folder)
    digests = [inventory_fingerprint(plain.slides)]
    for corners in (CORNERS, CORNERS[:2]):
        write(folder / "a_patches.h5", corners)
        digests.append(inventory_fingerprint(configured(slide_folder, slides={"places": str(folder)}).slides))
    assert len(set(digests)) == 3
    values = plain.model_dump(mode="json")
    del values["slides"]["places"]
    assert inventory_fingerprint(make_config(values).slides) == digests[0]


def test_a_pseudonymised_run_finds_them_and_names_their_folder_nowhere(
    slide_folder: Path, configured: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pseudonyms.FOLDER_VARIABLE, str(tmp_path / "private"))
    write(tmp_path / "Mustermann" / "a_patches.h5")
    open_config = configured(slide_folder, slides={"places": str(tmp_path / "Mustermann")}).slides
    hidden = pseudonyms.pseudonymised(open_config, run=tmp_path / "run")
    assert "Mustermann" not in hidden.model_dump_json()
    assert [entry.usable for entry in find_slides(hidden)].count(True) == 1
