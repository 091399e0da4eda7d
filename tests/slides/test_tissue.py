"""Tissue on real and procedural slides, with artefacts planted: the mask before and after must agree."""

from __future__ import annotations

import numpy as np
import pytest
from artefacts import PENS, black_border, coverslip, dust, paler, pen, puddle
from PIL import Image
from scipy import ndimage

from histoloom.seeding import numpy_generator
from histoloom.slides.procedural.slides import CLASSES, EMPTY, draw_slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.tissue.mask import find_pen, optical_density, segment_thumbnail, tissue_mask

SIDE = 1024
REAL = ("CMU-1-Small-Region.svs", "her2-B1.tif", "tcga-cr-7395.svs")
PROCEDURAL = ("procedural",)


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


@pytest.fixture(scope="module", params=[*PROCEDURAL, *REAL])
def section(request, real_data):
    """A thumbnail and its tissue."""
    if request.param in PROCEDURAL:
        thumbnail, _ = draw_slide(5, number=1, size=SIDE, mpp=2.0)
    else:
        with open_slide(real_data / "slides" / request.param) as slide:
            thumbnail = slide.thumbnail(SIDE)
    return thumbnail, tissue_mask(thumbnail)


def rng(*parts):
    return numpy_generator(0, "artefacts", *parts)


@pytest.mark.parametrize("number", [1, 2])
def test_procedural_tissue_is_found_with_its_holes(number):
    """The true map says where the section is; what is white inside it are voids, which count as its part."""
    thumbnail, truth_hw = draw_slide(3, number=number, size=SIDE, mpp=2.0)
    inside = truth_hw.repeat(4, axis=0).repeat(4, axis=1) != EMPTY
    mask = tissue_mask(thumbnail)
    assert CLASSES[EMPTY] == "empty space"
    assert (mask & ~inside).sum() < 0.01 * inside.sum()
    assert overlap(ndimage.binary_fill_holes(mask), inside) > 0.93


@pytest.mark.parametrize("colour", PENS)
def test_pen_is_no_tissue(section, colour):
    thumbnail, before = section
    marked, where = pen(thumbnail, colour=colour, rng=rng(colour))
    seen = segment_thumbnail(marked)
    away = ~ndimage.binary_dilation(where, iterations=8)
    assert overlap(seen.tissue_hw & away, before & away) > 0.96
    on_glass = where & ~ndimage.binary_dilation(before, iterations=3)
    assert (seen.tissue_hw & on_glass).sum() < 0.06 * on_glass.sum()
    assert (seen.pen_hw & on_glass).sum() > 0.9 * on_glass.sum()


def test_tissue_is_no_pen(section):
    """But for the surgical ink at the rim of one of the sections."""
    assert segment_thumbnail(section[0]).pen_hw.mean() < 0.012


def test_bone_and_blood_are_no_red_pen(real_data):
    """45 fields of osteosarcoma without any pen; dense bone has nearly the colour of red ink."""
    fields = sorted((real_data / "tiles" / "osteosarcoma").glob("*.jpg"))
    assert len(fields) == 45
    for path in fields:
        thumbnail = np.asarray(Image.open(path).convert("RGB"))
        assert find_pen(optical_density(thumbnail)).pen_hw.mean() < 1e-3, path.name


def test_red_pen_is_found_on_a_field_of_bone(real_data):
    """A ring and a stroke on the glass beside bone count, the bone itself does not."""
    field = np.asarray(Image.open(real_data / "tiles" / "osteosarcoma" / "Case3-A17-7799-34542.jpg").convert("RGB"))
    picture = np.concatenate([field, np.full_like(field, 245)], axis=1)
    marked, where = pen(picture, colour="red", rng=rng("bone"))
    found = segment_thumbnail(marked).pen_hw
    on_glass = where & (np.arange(picture.shape[1]) >= field.shape[1])
    assert on_glass.sum() > 1000
    assert found[on_glass].mean() > 0.9
    bone = ~ndimage.binary_dilation(where, iterations=8) & (np.arange(picture.shape[1]) < field.shape[1])
    assert found[bone].mean() < 0.01


def test_black_borders(section):
    thumbnail, before = section
    bordered, where = black_border(thumbnail, share=0.06, rng=rng("border"))
    after = tissue_mask(bordered)
    assert not (after & where)[:, :-3].any()
    away = ~ndimage.binary_dilation(where, iterations=4)
    assert overlap(after & away, before & away) > 0.96


@pytest.mark.parametrize("plant", [coverslip, dust])
def test_edges_and_dust(section, plant):
    thumbnail, before = section
    spoiled, where = plant(thumbnail, rng=rng(plant.__name__))
    after = tissue_mask(spoiled)
    assert overlap(after, before) > 0.98
    new = where & ~ndimage.binary_dilation(before, iterations=3)
    assert (after & new).sum() < 0.2 * new.sum()  # large brown specks stay


def test_bled_eosin_is_no_tissue(section):
    thumbnail, before = section
    spoiled, _ = puddle(thumbnail, rng=rng("puddle"))
    assert overlap(tissue_mask(spoiled), before) > 0.92


def test_pale_stain(section):
    thumbnail, before = section
    assert overlap(tissue_mask(paler(thumbnail, factor=0.5)), before) > 0.8


def test_pale_fat_is_tissue_and_a_vessel_is_a_hole():
    """Cells of fat, 12 px wide with membranes that are hardly stained, around a void of 80 px."""
    y, x = np.mgrid[:400, :400]
    membrane = (np.minimum((x + 6 * (y // 12 % 2)) % 12, y % 12) == 0).astype(float)
    membrane[(y - 200) ** 2 + (x - 200) ** 2 < 40**2] = 0
    membrane[:60], membrane[-60:], membrane[:, :60], membrane[:, -60:] = 0, 0, 0, 0
    density = ndimage.gaussian_filter(membrane, 0.8)[..., None] * np.array([0.12, 0.5, 0.2])
    noise = rng("fat").normal(0, 1, density.shape)
    mask = tissue_mask((243 * np.exp(-density) + noise).clip(0, 255).round().astype(np.uint8))
    fat = (np.hypot(y - 200, x - 200) > 46) & (np.abs(y - 200) < 130) & (np.abs(x - 200) < 130)
    assert mask[fat].mean() > 0.9
    assert mask[np.hypot(y - 200, x - 200) < 34].mean() < 0.05
    assert not mask[:50].any()


def test_a_thumbnail_of_a_few_pixels():
    assert tissue_mask(np.full((3, 1, 3), 240, np.uint8)).shape == (3, 1)
    assert tissue_mask(np.asarray(Image.new("RGB", (1, 1), (200, 60, 150)))).shape == (1, 1)
