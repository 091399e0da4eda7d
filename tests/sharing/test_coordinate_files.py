"""Places of a run's patches as HDF5: what TRIDENT and CLAM read from them is the run's patches.

What each reads is written down from its source: WSI.extract_features and WSIPatcher of TRIDENT, Whole_Slide_Bag_FP of
CLAM.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from command_line import histoloom

from histoloom.run.directory import Run
from histoloom.run.stage import EventLog, StageContext
from histoloom.sharing.coordinate_files import Program, attributes_of, export_coordinates, file_names
from histoloom.slides import stage
from histoloom.slides.patch_set import PatchSet, SlideRow
from histoloom.slides.places import PlaceFiles, read_places
from histoloom.slides.readers.open import open_slide


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return Run.open(tiny_run)


def row(slide_id: str, file: str) -> SlideRow:
    return SlideRow(slide_id, file, "p", "s", 1000, 500, 0.2525, "", "train", 1, "ok")


def slide_files(patches: PatchSet) -> dict[str, pd.DataFrame]:
    table = patches.table
    return {Path(row.file).stem: table[table["slide_id"] == row.slide_id] for row in SlideRow.load(patches.folder)}


def test_trident_reads_the_same_boxes_of_the_slides(run: Run, tmp_path: Path) -> None:
    done = histoloom("export", run.path, tmp_path / "20x", "--to", "trident")
    assert done.returncode == 0, done.stderr
    patches = PatchSet.open(run.folder("patches"))
    expected = slide_files(patches)
    files = sorted((tmp_path / "20x" / "patches").iterdir())
    assert [file.name for file in files] == sorted(f"{name}_patches.h5" for name in expected)
    for name, rows in expected.items():
        with h5py.File(tmp_path / "20x" / "patches" / f"{name}_patches.h5") as file:
            coords, attributes = file["coords"][:], dict(file["coords"].attrs)
        assert np.issubdtype(coords.dtype, np.integer)
        np.testing.assert_array_equal(coords, rows[["x", "y"]])
        downsample = (10 / attributes["target_magnification"]) / (10 / attributes["level0_magnification"])
        side = round(attributes["patch_size"] * downsample)
        assert side == attributes["patch_size_level0"] == round(rows["extent"].iloc[0])
        assert attributes["patch_size"] == patches.size
        assert (attributes["name"], attributes["overlap"], attributes["savetodir"]) == (name, 0, "20x")
        with open_slide(Path(rows_file(patches, name))) as slide:
            assert (attributes["level0_width"], attributes["level0_height"]) == slide.dimensions


def rows_file(patches: PatchSet, name: str) -> str:
    return next(row.file for row in SlideRow.load(patches.folder) if Path(row.file).stem == name)


def test_clam_reads_the_same_pixels(run: Run, tmp_path: Path) -> None:
    """``coords[i]``, ``patch_size`` px of ``patch_level``: here the patch has as many px on the slide as in the run."""
    export_coordinates(run, tmp_path / "out", program="clam")
    patches = PatchSet.open(run.folder("patches"))
    assert (patches.table["extent"] == patches.size).all()
    for name, rows in slide_files(patches).items():
        with h5py.File(tmp_path / "out" / "patches" / f"{name}.h5") as file:
            level, size = (file["coords"].attrs[key] for key in ("patch_level", "patch_size"))
            assert (len(file["coords"]), file["coords"].attrs["name"]) == (len(rows), name)
            x, y = file["coords"][0]
        assert level == 0
        with open_slide(Path(rows_file(patches, name))) as slide:
            pixels = slide.read(x, y, extent=float(size), size=int(size))
        np.testing.assert_array_equal(pixels, patches.images([int(rows.index[0])])[0])


@pytest.mark.parametrize("program", ["trident", "clam"])
def test_clusters_stand_beside_the_places_and_reading_gives_the_places_back(
    program: Program, run: Run, tmp_path: Path
) -> None:
    export_coordinates(run, tmp_path / "out", program=program)
    files, patches = PlaceFiles(str(tmp_path / "out")), PatchSet.open(run.folder("patches"))
    clusters = pd.read_parquet(run.folder("clusters") / "index.parquet").set_index("patch_id")
    assert len(files.files) == len(slide_files(patches))
    dimensions = {Path(row.file).stem: (row.width, row.height) for row in SlideRow.load(patches.folder)}
    for name, rows in slide_files(patches).items():
        with h5py.File(files.files[name]) as file:
            for column in ("k2", "k3"):
                assert file[column][:].tolist() == clusters.loc[rows["patch_id"], column].tolist()
                assert len(file[column].attrs["tissue"]) == int(column[1:])
            assert file["split"].asstr()[:].tolist() == rows["split"].tolist()
        extent = float(rows["extent"].iloc[0])
        places = read_places(
            files.files[name], dimensions=dimensions[name], extent=extent, size=patches.size, source_mpp=1.0
        )
        np.testing.assert_array_equal(places.corner_N2, rows[["x", "y"]])
        assert (places.extent, places.left_out) == (extent, 0)


def test_a_run_at_the_places_of_another_has_its_patches(run: Run, tmp_path: Path) -> None:
    export_coordinates(run, tmp_path / "places", program="trident")
    slides = run.config.slides.model_copy(update={"places": str(tmp_path / "places")})
    out = tmp_path / "out"
    out.mkdir()
    config = run.config.model_copy(update={"slides": slides})
    stage.run(StageContext(tmp_path, config, out, {}, EventLog(out / "log.jsonl")))
    made, patches = PatchSet.open(out), PatchSet.open(run.folder("patches"))
    columns = ["patch_id", "x", "y", "extent", "tissue", "split"]
    pd.testing.assert_frame_equal(made.table[columns], patches.table[columns])
    rows = np.arange(len(patches))
    np.testing.assert_array_equal(made.images(rows), patches.images(rows))


def test_magnifications_give_the_extent_of_any_scale_and_names_are_told_apart() -> None:
    made = attributes_of(row("a", "a.svs"), program="trident", size=256, mpp=0.5, extent=256 * 0.5 / 0.2525)
    assert made["patch_size_level0"] == 507
    assert made["target_magnification"] == 20
    assert made["level0_magnification"] == pytest.approx(10 / 0.2525)
    rows = {"a": "/x/a.svs", "a-2": "/y/A.tif", "c": "/x/c.ome.tif", "s12": "private:token/s12"}
    slides = [row(slide_id, file) for slide_id, file in rows.items()]
    assert file_names(slides) == {"a": "a", "a-2": "a-2", "c": "c", "s12": "s12"}


def test_what_is_there_stays(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for more in ((), ("--half",)):
        done = histoloom("export", run.path, tmp_path, "--to", "trident", *more)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done
        assert ("--half" if more else "exists and is not empty") in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
