"""Grid, numbers per slide, filters and overviews, through the whole stage on small real pyramids."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest
from artefacts import PENS
from PIL import Image
from scipy import ndimage

from histoloom import seeding
from histoloom.config import PatchesConfig
from histoloom.errors import UserError
from histoloom.slides import stage
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.patches.extract import SPLIT_COLOURS, TISSUE_COLOUR
from histoloom.slides.patches.sampling import SlideGeometry, draw_positions, patches_per_slide, position_count
from histoloom.slides.readers.open import open_slide
from histoloom.slides.tissue.mask import PackedMask


def rng(name="test"):
    return seeding.numpy_generator(0, name)


def ran(config, context, name="out"):
    job = context(config, name=name)
    stage.run(job)
    return job, PatchSet.open(job.out), [event["message"] for event in job.log.read()]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_a_grid_is_regular_complete_and_centred(overlap):
    geometry = SlideGeometry(1003, 777, 100.0, PackedMask.of(np.zeros((10, 10), bool)))
    config = PatchesConfig(sampling="grid", overlap=overlap, count=None)
    drawn = draw_positions(position_count(geometry, config=config), geometry=geometry, config=config, generator=rng())
    pitch = 100 * (1 - overlap)
    for axis, length in ((drawn.x, 1003), (drawn.y, 777)):
        lines = np.unique(axis)
        assert (np.diff(lines) == pitch).all()
        before, after = lines[0], length - lines[-1] - 100
        assert 0 <= before <= after <= before + 1
        assert before + after < pitch
    assert len(drawn) == len(np.unique(drawn.x)) * len(np.unique(drawn.y))


def test_a_grid_of_fractional_pitch_does_not_drift_or_stand_over():
    geometry = SlideGeometry(1000, 200, 93.02325581395348, PackedMask.of(np.zeros((10, 10), bool)))
    config = PatchesConfig(sampling="grid", count=None)
    x = np.unique(
        draw_positions(position_count(geometry, config=config), geometry=geometry, config=config, generator=rng()).x
    )
    assert len(x) == 10
    assert set(np.diff(x)) <= {93, 94}
    assert x[-1] + geometry.extent <= 1000
    assert position_count(SlideGeometry(50, 50, 93.0, geometry.tissue), config=config) == 0


def test_numbers_of_count_and_per_slide():
    area, room = np.array([5.0, 3.0, 2.0]), np.array([900, 900, 30])

    def shared(**settings):
        return patches_per_slide(area, capacity=room, config=PatchesConfig(sampling="grid", **settings)).tolist()

    assert shared(count=100) == [50, 30, 20]
    assert shared(count=None, per_slide=40) == [40, 40, 30]
    assert shared(count=100, per_slide=40) == [40, 36, 24]
    assert shared(count=1000, per_slide=40) == [40, 40, 30]
    assert shared(count=None) == [900, 900, 30]


def test_detect_on_a_grid_takes_every_place_with_tissue_and_its_share_of_background():
    tissue = np.zeros((100, 100), bool)
    tissue[:, :40] = True
    geometry = SlideGeometry(4000, 4000, 100.0, PackedMask.of(tissue))
    config = PatchesConfig(tissue="detect", sampling="grid", count=None, background_share=0.2)
    drawn = draw_positions(position_count(geometry, config=config), geometry=geometry, config=config, generator=rng())
    assert (drawn.tissue >= 0.5).sum() == 16 * 40
    assert (drawn.tissue < 0.5).sum() == 160


def test_spares_come_after_what_is_wanted():
    tissue = np.zeros((100, 100), bool)
    tissue[:, :40] = True
    geometry = SlideGeometry(4000, 4000, 100.0, PackedMask.of(tissue))
    config = PatchesConfig(tissue="detect", background_share=0.2)
    drawn = draw_positions(50, geometry=geometry, config=config, generator=rng(), spares=200)
    assert len(drawn) == 250
    assert (drawn.tissue[:50] < 0.5).sum() == 10
    assert (drawn.tissue < 0.5).sum() == 50
    assert len({*zip(drawn.x.tolist(), drawn.y.tolist(), strict=True)}) == 250


def test_per_slide_through_the_stage(slide_folder, configured, context):
    _, patches, _ = ran(configured(slide_folder, patches={"count": None, "per_slide": 11}), context)
    assert patches.slides["patches"].tolist() == [11, 11, 11]


def test_grid_through_the_stage(slide_folder, configured, context):
    config = configured(slide_folder, patches={"count": None, "sampling": "grid", "overlap": 0.5})
    _, patches, _ = ran(config, context)
    assert patches.slides["patches"].tolist() == [15 * 13, 19 * 17, 23 * 21]
    for place in patches.table.sample(5, random_state=1).itertuples():
        with open_slide(slide_folder / f"{place.slide_id}.tif") as slide:
            expected = slide.read(place.x, place.y, extent=32.0, size=16)
        np.testing.assert_array_equal(patches.images([place.Index])[0], expected)


@pytest.fixture(scope="module")
def flawed(tmp_path_factory, picture, pyramid):
    """Two slides of 1024 px full of texture: one has its left half out of focus, one a blue stroke of pen."""
    folder = tmp_path_factory.mktemp("flawed")
    whole = picture(2048, 2048, seed=1)[512:1536, 512:1536]
    blurred = whole.copy()
    blurred[:, :512] = ndimage.gaussian_filter(whole[:, :512], (8, 8, 0))
    pyramid(folder / "blurred.tif", blurred, mpp=0.5)
    inked = whole.copy()
    inked[:, 600:720] = PENS["blue"]
    inked[:, :200] = 244
    pyramid(folder / "inked.tif", inked, mpp=0.5)
    return folder


FILTERED = {
    "size": 32, "mpp": 0.5, "count": 120, "tissue": "detect", "background_share": 0.0, "min_tissue": 0.4,
    "split": {"by": "slide", "holdout": 0.5},
}  # fmt: skip


def test_filters_reject_replace_and_count(flawed, configured, context):
    off = FILTERED | {"filters": {"blur": None, "pen": None}}
    _, plain, _ = ran(configured(flawed, patches=off), context, "plain")
    _, patches, lines = ran(configured(flawed, patches=FILTERED), context, "filtered")
    assert (plain.slides[["rejected_blur", "rejected_pen"]] == 0).all(axis=None)
    assert len(plain) == len(patches) == 120
    slides = patches.slides.set_index("slide_id")
    left = {name: (part["x"] < 470).mean() for name, part in patches.table.groupby("slide_id")}
    assert left["blurred"] < 0.05
    assert (plain.table.query("slide_id == 'blurred'")["x"] < 470).mean() > 0.3
    assert slides.loc["blurred", "rejected_blur"] > 15
    assert slides.loc["blurred", "rejected_pen"] == 0
    assert slides.loc["inked", "rejected_pen"] > 0
    blur, pen = slides["rejected_blur"].sum(), slides["rejected_pen"].sum()
    assert f"patches: 120 of {120 + blur + pen} drawn, " in lines[-1]
    assert f"; rejected for blur: {blur} (on " in lines[-1]
    assert f"; rejected for pen: {pen} (on 1 slides)" in lines[-1]
    place = patches.table.iloc[7]
    with open_slide(flawed / f"{place['slide_id']}.tif") as slide:
        expected = slide.read(place["x"], place["y"], extent=32.0, size=32)
    np.testing.assert_array_equal(patches.images([7])[0], expected)


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "log.jsonl"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_filtered_patches_resume_to_the_same_bytes(flawed, configured, context):
    config = configured(flawed, patches=FILTERED)
    whole, _, _ = ran(config, context, "whole")
    broken = context(config, name="broken")
    shutil.copytree(whole.out, broken.out, dirs_exist_ok=True)
    for name in ("images/blurred.npy", "checkpoints/inked.json", "index.parquet", "overviews/blurred.jpg"):
        (broken.out / name).unlink()
    stage.run(broken)
    assert digests(whole.out) == digests(broken.out)
    spread, _, _ = ran(configured(flawed, patches=FILTERED, workers=2), context, "spread")
    assert digests(whole.out) == digests(spread.out)


def test_fewer_come_out_where_a_slide_has_no_more(flawed, configured, context):
    """On the grid, half of a slide's places are blurred: the rest is moved up and the file cut."""
    grid = FILTERED | {"count": None, "sampling": "grid"}
    job, patches, _ = ran(configured(flawed, patches=grid), context)
    slides = patches.slides.set_index("slide_id")
    assert slides.loc["blurred", "patches"] + slides.loc["blurred", "rejected_blur"] == 32 * 32
    stored = np.load(job.out / "images" / "blurred.npy", mmap_mode="r")
    assert len(stored) == slides.loc["blurred", "patches"]
    for row in (0, len(stored) // 2, len(stored) - 1):
        place = patches.table.query("slide_id == 'blurred'").iloc[row]
        with open_slide(flawed / "blurred.tif") as slide:
            expected = slide.read(place["x"], place["y"], extent=32.0, size=32)
        np.testing.assert_array_equal(stored[row], expected)


def test_a_slide_whose_patches_are_all_rejected_is_left_out(flawed, configured, context):
    strict = FILTERED | {"filters": {"blur": 1e6}}
    with pytest.raises(UserError, match=r"every patch tried was rejected \(blur \d+\); loosen patches.filters"):
        ran(configured(flawed, patches=strict), context)
    assert not list((context(configured(flawed)).out / "images").iterdir())


def test_overviews_show_tissue_and_patches(slide_folder, configured, context):
    job, patches, _ = ran(configured(slide_folder, patches={"split": {"by": "slide", "holdout": 0.3}}), context)
    for row in patches.slides.itertuples():
        with Image.open(job.out / "overviews" / f"{row.slide_id}.jpg") as image:
            pixels = np.asarray(image).astype(int)
        assert pixels.shape == (row.height, row.width, 3)
        places = patches.table[patches.table["slide_id"] == row.slide_id]
        for split, colour in SPLIT_COLOURS.items():
            near = np.abs(pixels - colour).max(axis=2) < 60
            on_frames = np.mean([near[place.y, place.x : place.x + 32].mean() for place in places.itertuples()])
            assert on_frames > 0.8 if split == row.split else on_frames < 0.2
        assert (np.abs(pixels - TISSUE_COLOUR).max(axis=2) < 60).sum() > row.width / 4
    assert set(pd.unique(patches.slides["split"])) == {"train", "holdout"}
