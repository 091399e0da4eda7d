"""The patches stage: what it writes, that it resumes to the same bytes, and what it says of bad slides."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloom.errors import UserError
from histoloom.slides import stage
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.patches import extract
from histoloom.slides.readers.open import open_slide


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "log.jsonl"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def messages(context):
    return [event["message"] for event in context.log.read()]


def test_writes_what_the_data_model_says(slide_folder, configured, context):
    job = context(configured(slide_folder))
    stage.run(job)
    assert json.loads((job.out / "meta.json").read_text()) == {"size": 16, "mpp": 1.0, "n": 60}
    patches = PatchSet.open(job.out)
    assert list(patches.table.columns) == [
        "patch_id", "slide_id", "slide", "patient", "split", "x", "y", "extent", "tissue",
    ]  # fmt: skip
    assert list(patches.slides.columns) == [
        "slide_id", "file", "patient", "slide", "width", "height", "source_mpp", "mpp_source", "split", "patches",
        "status", "rejected_blur", "rejected_pen",
    ]  # fmt: skip
    assert len(patches) == 60
    assert patches.table["patch_id"].is_unique
    first = patches.table.iloc[0]
    assert first["patch_id"] == f"a_x{first['x']}_y{first['y']}"
    assert (patches.table["extent"] == 32.0).all()
    areas = np.array([256 * 224, 320 * 288, 384 * 352])
    np.testing.assert_allclose(patches.slides["patches"], 60 * areas / areas.sum(), atol=1)
    for name in "abc":
        assert np.load(job.out / "images" / f"{name}.npy", mmap_mode="r").dtype == np.uint8
        with Image.open(job.out / "thumbnails" / f"{name}.jpg") as image:
            assert max(image.size) <= 1024


def test_each_row_has_the_pixels_of_its_place(slide_folder, configured, context):
    job = context(configured(slide_folder))
    stage.run(job)
    patches = PatchSet.open(job.out)
    rows = np.array([59, 0, 30, 7, 59])
    images = patches.images(rows)
    for row, image in zip(rows, images, strict=True):
        place = patches.table.iloc[row]
        with open_slide(slide_folder / f"{place['slide_id']}.tif") as slide:
            np.testing.assert_array_equal(slide.read(place["x"], place["y"], extent=32.0, size=16), image)


def test_patch_set_finds_rows(slide_folder, configured, context):
    job = context(configured(slide_folder))
    stage.run(job)
    patches = PatchSet.open(job.out)
    rows = np.array([5, 41, 17])
    np.testing.assert_array_equal(patches.rows_of(patches.table["patch_id"].to_numpy()[rows]), rows)
    with pytest.raises(ValueError, match="no patch 'x_x0_y0'"):
        patches.rows_of(["x_x0_y0"])
    train, held = patches.rows(split="train"), patches.rows(split="holdout")
    assert sorted([*train, *held]) == list(patches.rows())
    assert len(held) > 0
    copy = pickle.loads(pickle.dumps(patches))
    np.testing.assert_array_equal(copy.images(rows), patches.images(rows))
    assert patches.images([]).shape == (0, 16, 16, 3)
    with pytest.raises(UserError, match="holds no patches"):
        PatchSet.open(slide_folder)


def test_resumes_to_the_same_bytes(slide_folder, configured, context):
    whole, broken = context(configured(slide_folder), name="whole"), context(configured(slide_folder), name="broken")
    stage.run(whole)
    stage.run(broken)
    assert digests(broken.out) == digests(whole.out)
    kept = broken.out / "images" / "a.npy"
    before = kept.stat().st_mtime_ns
    for name in ("images/b.npy", "index.parquet", "thumbnails/c.jpg", "meta.json"):
        (broken.out / name).unlink()
    (broken.out / "images" / ".b.npy.123.part").write_bytes(b"torn")
    stage.run(broken)
    assert digests(broken.out) == digests(whole.out)
    assert kept.stat().st_mtime_ns == before


def test_worker_processes_change_nothing(slide_folder, configured, context):
    alone, spread = context(configured(slide_folder), name="1"), context(configured(slide_folder, workers=2), name="2")
    stage.run(alone)
    stage.run(spread)
    assert digests(alone.out) == digests(spread.out)


def test_seeds_differ(slide_folder, configured, context):
    config = configured(slide_folder)
    jobs = [context(config.model_copy(update={"seed": seed}), name=str(seed)) for seed in (0, 1)]
    for job in jobs:
        stage.run(job)
    first, second = (set(PatchSet.open(job.out).table["patch_id"]) for job in jobs)
    assert len(first & second) < 5


def test_broken_slides_are_left_out_and_reported(slide_folder, configured, context, pyramid, picture, spoiled):
    spoiled(pyramid(slide_folder / "spoiled.tif", picture(256, 256), mpp=0.5, levels=1))
    (slide_folder / "text.svs").write_text("hello", encoding="utf-8")
    pyramid(slide_folder / "tiny.tif", picture(24, 200), mpp=0.5, levels=1)
    Image.fromarray(picture(64, 64)).save(slide_folder / "silent.png")
    job = context(configured(slide_folder))
    stage.run(job)
    slides = pd.read_parquet(job.out / "slides.parquet").set_index("slide_id")
    assert (slides.loc[["a", "b", "c"], "status"] == "ok").all()
    assert slides.loc["tiny", "status"] == (
        "slide is smaller than one patch: 12 x 100 um, needs 16 um; choose a smaller patches.size or patches.mpp"
    )
    assert "--mpp" in slides["status"]["silent"]
    assert "cannot be read" in slides["status"]["spoiled"]
    assert (slides.loc[["tiny", "silent", "spoiled", "text"], "patches"] == 0).all()
    assert len([line for line in messages(job) if line.startswith("left out ")]) == 4
    assert messages(job)[-2:] == [
        "slides: 3 of 7 used; left out: 1 (does not say its mpp), 1 (cannot be read), 1 (is not a slide or image that "
        "OpenSlide, tifffile or Pillow can open), 1 (slide is smaller than one patch)",
        "patches: 60 of 60 drawn, 48 for training",
    ]
    assert len(PatchSet.open(job.out)) == 60


def test_slide_that_fails_midway_is_left_out(slide_folder, configured, context, pyramid, picture, spoiled):
    """Its thumbnail can be read from a coarse level; its patches cannot."""
    spoiled(pyramid(slide_folder / "d.tif", picture(2048, 2048), mpp=0.5, levels=3))
    job = context(configured(slide_folder, patches={"mpp": 0.5, "count": 200}))
    stage.run(job)
    patches = PatchSet.open(job.out)
    slides = patches.slides.set_index("slide_id")
    assert "cannot be read" in slides["status"]["d"]
    assert not list((job.out / "images").glob("*d.npy*"))
    assert 0 < len(patches) < 200
    assert set(patches.table["slide_id"]) == {"a", "b", "c"}
    assert any("instead of 200" in line for line in messages(job))


def test_split_by_patient_never_leaks(slide_folder, configured, context):
    shutil.copy(slide_folder / "a.tif", slide_folder / "a2.tif")
    text = "file,patient,slide\na.tif,P,S1\na2.tif,P,S2\nb.tif,Q,S3\nc.tif,R,S3\n"
    (slide_folder / "slides.csv").write_text(text, encoding="utf-8")
    for seed in range(2):
        for by in ("patient", "slide"):
            config = configured(slide_folder, patches={"split": {"by": by, "holdout": 0.3}})
            job = context(config.model_copy(update={"seed": seed}), name=f"{by}{seed}")
            stage.run(job)
            table = PatchSet.open(job.out).table
            assert (table.groupby(by)["split"].nunique() == 1).all()
            assert set(table["split"]) == {"train", "holdout"}


def test_one_patient_means_no_holdout_and_a_word_about_it(slide_folder, configured, context):
    (slide_folder / "slides.csv").write_text("file,patient\na.tif,P\nb.tif,P\nc.tif,P\n", encoding="utf-8")
    job = context(configured(slide_folder))
    stage.run(job)
    assert (PatchSet.open(job.out).table["split"] == "train").all()
    assert any("only one patient" in line for line in messages(job))


@pytest.mark.parametrize(("stained", "tissue", "warned"), [(8, "all", False), (2, "all", True), (2, "detect", False)])
def test_patches_that_are_mostly_empty_are_reported(stained, tissue, warned, tmp_path, configured, context, pyramid):
    generator = np.random.default_rng(0)
    for number in range(10):
        colour = (150, 80, 150) if number < stained else (244, 244, 244)
        pixels = np.clip(np.array(colour) + generator.integers(-20, 10, (256, 256, 3)), 0, 255).astype(np.uint8)
        pyramid(tmp_path / f"s{number}.tif", pixels, mpp=0.5)
    job = context(configured(tmp_path, patches={"tissue": tissue, "background_share": 0.0}))
    stage.run(job)
    assert any("show no tissue" in line and "patches.tissue=detect" in line for line in messages(job)) == warned


def test_detect_takes_tissue(slide_folder, configured, context, pyramid):
    pyramid(slide_folder / "blank.tif", np.full((256, 256, 3), 244, np.uint8), mpp=0.5)
    job = context(configured(slide_folder, patches={"tissue": "detect", "background_share": 0.25}))
    stage.run(job)
    patches = PatchSet.open(job.out)
    assert patches.slides.set_index("slide_id")["status"]["blank"].startswith("no tissue was found")
    enough = patches.table["tissue"].to_numpy() >= 0.5
    assert enough.mean() == pytest.approx(0.75, abs=0.03)
    dark = patches.images(patches.rows()).reshape(60, -1).mean(axis=1)
    assert dark[enough].max() < dark[~enough].mean()


def test_too_few_patches_for_the_clusters(slide_folder, configured, context):
    with pytest.raises(UserError, match=r"patches\.count is 2, fewer than the 3 clusters"):
        stage.run(context(configured(slide_folder, patches={"count": 2})))
    few = {"count": 4, "split": {"by": "slide", "holdout": 0.5}}
    with pytest.raises(UserError, match="the training patches number 2, fewer than the 3 clusters"):
        stage.run(context(configured(slide_folder, patches=few), name="few"))


def test_patch_larger_than_every_slide(slide_folder, configured, context):
    with pytest.raises(UserError, match=r"none of the 3 slides .* than one patch: 128 x 112 um, needs 192 um"):
        stage.run(context(configured(slide_folder / "a.tif", slide_folder, patches={"mpp": 12.0})))


def test_remarks(slide_folder, configured, context):
    job = context(configured(slide_folder, patches={"mpp": 0.25}, slides={"mpp": 0.7}))
    stage.run(job)
    text = " | ".join(messages(job))
    assert "patches.mpp 0.25 is finer than 3 of 3 slides" in text
    assert "slides.mpp 0.7 is not used" in text


def test_full_disk_is_one_line_and_keeps_what_is_there(slide_folder, configured, context, monkeypatch):
    job = context(configured(slide_folder))
    stage.run(job)
    (job.out / "images" / "b.npy").unlink()

    def full(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(extract.np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(UserError, match="no space left"):
            stage.run(job)
    assert sorted(path.name for path in (job.out / "images").iterdir()) == ["a.npy", "c.npy"]


def test_real_osteosarcoma_fields(real_data, configured, context):
    folder = real_data / "tiles" / "osteosarcoma"
    patients = ("Case3-", "Case4-", "Case48", "P9")
    fields = [file for patient in patients for file in sorted(folder.glob(f"{patient}*.jpg"))[:3]]
    settings = {"size": 64, "mpp": 2.0, "count": 2 * len(fields), "split": {"by": "patient"}}
    job = context(configured(*fields, patches=settings, slides={"table": str(folder / "slides.csv")}))
    stage.run(job)
    patches = PatchSet.open(job.out)
    assert (patches.slides["patches"] == 2).all()
    assert patches.table["patient"].nunique() == 4
    assert set(patches.table.loc[patches.table["split"] == "holdout", "patient"]).isdisjoint(
        patches.table.loc[patches.table["split"] == "train", "patient"]
    )
