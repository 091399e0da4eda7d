"""Stain estimates: one for each slide, saved in the folder of the patches, and nearly the same for a new slide."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloom.config import PatchesConfig
from histoloom.errors import UserError
from histoloom.slides import stage
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.readers.open import open_slide
from histoloom.slides.stain.normalise import FIELDS, REFERENCES, Macenko, SlideStains, spread_fields

MACENKO = {"stain": "macenko"}


def files(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "log.jsonl"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def messages(context):
    return [event["message"] for event in context.log.read()]


def test_filters_use_the_pixels_before_stain_normalisation(tiny_slides, configured, context):
    filters = {"filters": {"blur": 0.1}}
    plain = context(configured(tiny_slides, patches=filters), name="plain")
    normal = context(configured(tiny_slides, patches=MACENKO | filters), name="normal")
    stage.run(plain)
    stage.run(normal)
    before, after = PatchSet.open(plain.out), PatchSet.open(normal.out)
    assert before.slides["rejected_blur"].sum() > 0
    pd.testing.assert_frame_equal(before.slides, after.slides)
    pd.testing.assert_frame_equal(before.table, after.table)
    stains = SlideStains.load(normal.out)
    rows = np.flatnonzero(before.table["slide"] == "slide-01")
    recolour = stains.normaliser(stains.slides["slide-01"])
    assert recolour is not None
    np.testing.assert_array_equal(recolour(before.images(rows)), after.images(rows))


def test_patches_are_recoloured_by_their_slide(tiny_slides, configured, context):
    plain, normal = (
        context(configured(tiny_slides), name="plain"),
        context(configured(tiny_slides, patches=MACENKO), name="normal"),
    )
    stage.run(plain)
    stage.run(normal)
    assert not (plain.out / "stain.json").exists()
    stains = SlideStains.load(normal.out)
    assert stains.method == "macenko"
    assert stains.reference == REFERENCES["macenko"]
    assert sorted(stains.slides) == ["slide-01", "slide-02", "slide-03"]
    before, after = PatchSet.open(plain.out), PatchSet.open(normal.out)
    pd.testing.assert_frame_equal(before.table, after.table)
    for slide, stain in stains.slides.items():
        rows = np.flatnonzero(before.table["slide"] == slide)
        recolour = stains.normaliser(stain)
        assert recolour is not None
        np.testing.assert_array_equal(recolour(before.images(rows)), after.images(rows))
    colours = {
        name: patches.images(patches.rows()).mean(axis=(1, 2))
        for name, patches in (("before", before), ("after", after))
    }
    slides = before.table["slide"].to_numpy()
    dark = before.table["tissue"].to_numpy() > 0.95
    spread_of = {
        name: np.std([colour[dark & (slides == slide)].mean(axis=0) for slide in stains.slides], axis=0).mean()
        for name, colour in colours.items()
    }
    assert spread_of["after"] < 0.6 * spread_of["before"]


def test_resumes_to_the_same_bytes(tiny_slides, configured, context):
    config = configured(tiny_slides, patches=MACENKO)
    whole, broken = context(config, name="whole"), context(config, name="broken")
    stage.run(whole)
    stage.run(broken)
    for name in ("images/slide-02.npy", "index.parquet", "stain.json"):
        (broken.out / name).unlink()
    stage.run(broken)
    assert files(broken.out) == files(whole.out)


def test_worker_processes_change_nothing(tiny_slides, configured, context):
    alone, parallel = (context(configured(tiny_slides, patches=MACENKO, workers=n), name=str(n)) for n in (1, 2))
    stage.run(alone)
    stage.run(parallel)
    assert files(alone.out) == files(parallel.out)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_blank_slide_keeps_its_colours_and_the_log_says_so(
    tiny_slides, tmp_path, configured, context, pyramid, method
):
    blank = pyramid(tmp_path / "blank.tif", np.full((512, 512, 3), (240, 238, 242), np.uint8), mpp=1.0)
    job = context(configured(tiny_slides, blank, patches={"stain": method}))
    stage.run(job)
    message = "blank: too little stained tissue to estimate its stain; its patches keep their colours"
    assert [text for text in messages(job) if "stain" in text] == [message]
    assert json.loads((job.out / "stain.json").read_text())["slides"]["blank"] is None
    patches = PatchSet.open(job.out)
    rows = np.flatnonzero(patches.table["slide"] == "blank")
    assert len(rows)
    assert (patches.images(rows) == (240, 238, 242)).all()


def test_a_slide_can_be_the_reference(tiny_slides, configured, context):
    plain = context(configured(tiny_slides), name="plain")
    job = context(configured(tiny_slides, patches=MACENKO | {"stain_reference": "slide-02"}), name="job")
    stage.run(plain)
    stage.run(job)
    before, after = PatchSet.open(plain.out), PatchSet.open(job.out)
    change = np.abs(before.images(before.rows()).astype(int) - after.images(after.rows())).mean(axis=(1, 2, 3))
    own = before.table["slide"].to_numpy() == "slide-02"
    assert change[own].max() < 1
    assert change[~own].max() > 10


def test_an_unknown_reference_slide_is_a_one_line_error(tiny_slides, configured, context):
    job = context(configured(tiny_slides, patches=MACENKO | {"stain_reference": "slide-9"}))
    with pytest.raises(UserError, match="'slide-9' is not a usable slide of this run; there are: slide-01, slide-02"):
        stage.run(job)
    with pytest.raises(ValueError, match="stain_reference needs stain"):
        PatchesConfig(stain_reference="slide-01")


def test_several_images_of_one_slide_share_an_estimate(tiny_slides, tmp_path, configured, context):
    folder = tmp_path / "fields"
    folder.mkdir()
    with open_slide(tiny_slides / "slide-01.tif") as slide:
        for number, (x, y) in enumerate(((64, 64), (256, 64), (64, 256), (256, 256))):
            Image.fromarray(slide.read(x, y, extent=192, size=192)).save(folder / f"field-{number}.png")
    rows = "".join(f"field-{number}.png,p,{'ab'[number > 1]},1.0\n" for number in range(4))
    (folder / "slides.csv").write_text("file,patient,slide,mpp\n" + rows, encoding="utf-8")
    job = context(configured(folder, patches=MACENKO, slides={"table": str(folder / "slides.csv")}))
    stage.run(job)
    assert sorted(SlideStains.load(job.out).slides) == ["a", "b"]


def test_a_new_slide_gets_nearly_the_same_estimate(tiny_slides, configured, context):
    job = context(configured(tiny_slides, patches=MACENKO))
    stage.run(job)
    stains = SlideStains.load(job.out)
    with open_slide(tiny_slides / "slide-03.tif") as slide:
        known, later = stains.of_slide(slide, name="slide-03"), stains.of_slide(slide)
    assert known is not None
    assert later is not None
    assert known.stain == stains.slides["slide-03"]
    assert isinstance(known.stain, Macenko)
    assert isinstance(later.stain, Macenko)
    np.testing.assert_allclose(later.stain.haematoxylin, known.stain.haematoxylin, atol=0.03)
    np.testing.assert_allclose(later.stain.eosin, known.stain.eosin, atol=0.03)
    np.testing.assert_allclose(later.stain.strengths, known.stain.strengths, rtol=0.1)


def test_fields_lie_on_tissue_in_proportion_to_its_area():
    left, right = np.zeros((10, 20), bool), np.zeros((30, 30), bool)
    left[2:6, 5:10] = True
    right[10:20, 5:11] = True
    fields = spread_fields([left, np.zeros((4, 4), bool), right], dimensions=[(200, 100), (8, 8), (60, 60)])
    assert [len(points) for points in fields] == [FIELDS // 4, 0, FIELDS - FIELDS // 4]
    x, y = fields[0].T
    assert ((x > 50) & (x < 100) & (y > 20) & (y < 60)).all()
    x, y = fields[2].T
    assert ((x > 10) & (x < 22) & (y > 20) & (y < 40)).all()
    assert [len(points) for points in spread_fields([np.zeros((4, 4), bool)], dimensions=[(8, 8)])] == [0]
