"""Input that is no haematoxylin and eosin is noticed and said; what is, is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from histoloom.slides import stage
from histoloom.slides.procedural.slides import draw_slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.tissue.kind import not_he


def stained(absorbed, picture):
    """The test picture with its tissue in a stain that absorbs these optical densities of red, green and blue."""
    image = picture(256, 192).astype(float)
    amount = (255 - image[..., 1:2]) / 165
    return (245 * np.exp(-amount * np.array(absorbed))).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("absorbed", "reason"),
    [
        ((0.2, 1.0, 0.5), ""),  # eosin
        ((0.9, 1.0, 0.5), ""),  # haematoxylin
        ((0.4, 0.8, 1.1), "brown or yellow"),  # DAB
        ((1.2, 0.6, 0.2), "blue or green"),  # aniline blue
        ((0.6, 0.6, 0.6), "grey"),
    ],
)
def test_stains_are_told_by_what_they_absorb(picture, absorbed, reason):
    said = not_he(stained(absorbed, picture))
    assert (reason in said) if reason else said == ""


def test_fluorescence_has_a_dark_ground(picture):
    assert "fluorescence" in not_he(255 - picture(256, 192))


def test_empty_glass_says_nothing():
    assert not_he(np.full((64, 64, 3), 245, np.uint8)) == ""


def test_procedural_slides_pass():
    assert not_he(draw_slide(0, number=1, size=512, mpp=2.0)[0]) == ""


def test_a_real_section_in_dab_is_noticed():
    assert "immunohistochemistry" in not_he(data.immunohistochemistry())


def test_real_sections_in_haematoxylin_and_eosin_pass(real_data):
    files = [real_data / "slides" / name for name in ("CMU-1-Small-Region.svs", "her2-C2.tif", "tcga-cr-7395.svs")]
    for folder in ("crc", "osteosarcoma"):
        files += sorted((real_data / "tiles" / folder).glob("*.jpg"))[::12]
    assert len(files) > 10
    for file in files:
        with open_slide(file) as slide:
            assert not_he(slide.thumbnail(512)) == "", file.name


def test_the_stage_says_which_slides(tmp_path, picture, configured, context):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, image in (("pink", picture(256, 192)), ("brown", stained((0.4, 0.8, 1.1), picture))):
        Image.fromarray(image).save(folder / f"{name}.png")
    job = context(configured(folder, slides={"mpp": 1.0}))
    stage.run(job)
    text = (job.out / "log.jsonl").read_text(encoding="utf-8")
    assert "1 of 2 slides do not look like haematoxylin and eosin" in text
    assert "brown.png (it has brown or yellow stain" in text
    assert "pink.png (" not in text
