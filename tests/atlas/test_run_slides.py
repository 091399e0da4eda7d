"""The slides of a run: tiles from their files, one line where there are none, no private name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloom import pipeline
from histoloom.atlas.browse.run_slides import NoSlide, RunSlides, jpeg
from histoloom.setup import init_run
from histoloom.slides.entries import SlideError
from histoloom.slides.readers import viewer
from histoloom.slides.readers.viewer import NoTile


def shown(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        return np.asarray(image)


@pytest.fixture
def slides(finished):
    run_slides = RunSlides(finished.folder("patches"))
    yield run_slides
    run_slides.close()


def test_every_slide_of_the_table_is_known(slides):
    assert list(slides.by_id) == ["slide-0", "slide-1", "slide-2", "bad"]
    first, bad = slides.slide("slide-0"), slides.slide("bad")
    assert (first.width, first.height, first.mpp, first.patches, first.split) == (160, 128, 1.0, 24, "train")
    assert first.usable
    assert not bad.usable
    assert (bad.split, bad.mpp, bad.zoom) == ("", None, None)


def test_a_tile_is_the_slides_own_picture(slides, fields):
    tile = shown(slides.tile("slide-1", level=0, column=0, row=0))
    assert tile.shape == (128, 160, 3)
    assert np.abs(tile.astype(float) - fields["slide-1"]).mean() < 8
    assert slides.problem("slide-1") == ""


@pytest.mark.parametrize("slide_id", ["nobody", "", "../slide-0", "/etc/passwd", "slide-0\0", "bad\n"])
def test_no_slide_outside_of_the_table(slides, slide_id):
    for method in (slides.slide, slides.identity, slides.thumbnail, slides.problem):
        with pytest.raises(NoSlide) as caught:
            method(slide_id)
        assert "\n" not in str(caught.value)


def test_no_tile_outside_of_the_slide(slides):
    with pytest.raises(NoTile):
        slides.tile("slide-0", level=1, column=0, row=0)
    with pytest.raises(SlideError, match="left out"):
        slides.tile("bad", level=0, column=0, row=0)


def test_a_slide_that_moved_is_one_line_and_its_thumbnail_stays(slides, finished):
    file = Path(slides.slide("slide-0").file)
    file.unlink()
    trouble = slides.problem("slide-0")
    assert file.name in trouble
    assert "does not exist" in trouble
    assert "thumbnail" in trouble
    assert "\n" not in trouble
    assert slides.thumbnail("slide-0") == finished.folder("patches") / "thumbnails" / "slide-0.jpg"
    with pytest.raises(SlideError, match="does not exist"):
        slides.tile("slide-0", level=0, column=0, row=0)
    with pytest.raises(SlideError, match="does not exist"):
        slides.identity("slide-0")


def test_another_slide_under_the_name_is_not_shown_as_this_one(slides):
    Image.new("RGB", (50, 40)).save(slides.slide("slide-0").file)
    assert "its size is another" in slides.problem("slide-0")
    with pytest.raises(SlideError, match="its size is another"):
        slides.tile("slide-0", level=0, column=0, row=0)


def test_identity_changes_with_the_file(slides):
    before = {slide_id: slides.identity(slide_id) for slide_id in ("slide-0", "slide-1")}
    assert len(set(before.values())) == 2
    assert slides.identity("slide-0") == before["slide-0"]
    Image.new("RGB", (160, 128)).save(slides.slide("slide-0").file)
    assert slides.identity("slide-0") != before["slide-0"]


def test_a_slide_without_coarse_levels_is_shown_from_its_thumbnail(slides, monkeypatch):
    monkeypatch.setattr("histoloom.atlas.browse.run_slides.MAX_TILE_PIXELS", 100)
    with Image.open(slides.thumbnail("slide-0")) as image:
        expected = shown(jpeg(np.asarray(image)))
    np.testing.assert_array_equal(shown(slides.tile("slide-0", level=0, column=0, row=0)), expected)


@pytest.fixture
def private_run(tmp_path, tiny_slides, tiny_settings, monkeypatch):
    monkeypatch.setenv("HISTOLOOM_PRIVATE", str(tmp_path / "private"))
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=tiny_settings, pseudonymise=True)
    pipeline.execute(run, until="patches")
    return run


def test_a_pseudonymised_run_shows_slides_and_tells_no_name(private_run, tiny_slides, tmp_path, monkeypatch):
    slides = RunSlides(private_run.folder("patches"))
    files = {file.stem for file in tiny_slides.glob("*.tif")}
    for slide_id, info in slides.by_id.items():
        assert info.private
        assert shown(slides.tile(slide_id, level=0, column=0, row=0)).shape == (viewer.TILE, viewer.TILE, 3)
    slides.close()
    monkeypatch.setenv("HISTOLOOM_PRIVATE", str(tmp_path / "elsewhere"))
    for slide_id in RunSlides(private_run.folder("patches")).by_id:
        trouble = RunSlides(private_run.folder("patches")).problem(slide_id)
        assert "HISTOLOOM_PRIVATE" in trouble
        assert not any(name in trouble for name in (*files, str(tiny_slides)))


def test_the_name_of_a_private_slide_that_moved_is_not_shown(private_run):
    slides = RunSlides(private_run.folder("patches"))
    slide_id = next(iter(slides.by_id))
    info = slides.slide(slide_id)
    text = slides.explain(SlideError("cannot be read", detail="Mustermann.tif is torn"), info=info)
    assert "Mustermann" not in text
    assert "cannot be read" in text


def test_patches_without_a_size_are_no_slide(finished):
    path = finished.folder("patches") / "slides.parquet"
    table = pd.read_parquet(path)
    table.loc[0, ["width", "height"]] = 0
    table.to_parquet(path)
    slides = RunSlides(finished.folder("patches"))
    assert slides.problem("slide-0").startswith("This slide was left out of the run")
    assert slides.problem("bad") == "This slide was left out of the run: cannot be read: torn file"
