"""Normalisation of stain: estimates of known stains, hand values, and what must not change.

Shape letters: P pixels, 3 colours (red, green, blue).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import get_args

import numpy as np
import pytest

from histoloom.seeding import numpy_generator
from histoloom.slides.procedural.slides import draw_slide
from histoloom.slides.stain import normalise
from histoloom.slides.stain.normalise import GLASS, MIN_PIXELS, REFERENCES, Macenko, Reinhard, StainNormaliser

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])  # Ruifrok & Johnston 2001
EOSIN = np.array([0.07, 0.99, 0.11]) / np.linalg.norm([0.07, 0.99, 0.11])
METHODS = get_args(normalise.Method)


def mixture(*, n: int = 20_000, glass: float = 240.0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the two stains alone and mixed, uint8 (P, 3), and the amounts of both, (P, 2)."""
    generator = numpy_generator(0, "test-stains")
    amounts_P2 = generator.uniform(0.2, 1.4, (n, 2)) * (1.0, 0.8)
    amounts_P2[: n // 10, 1] = 0
    amounts_P2[n // 10 : n // 5, 0] = 0
    light_P3 = (glass + 1) * np.exp(-amounts_P2 @ np.stack([HAEMATOXYLIN, EOSIN])) - 1
    return np.rint(light_P3).astype(np.uint8), amounts_P2


@lru_cache
def section(number: int) -> np.ndarray:
    """A procedural section, uint8 (512, 512, 3); odd and even numbers come from two laboratories."""
    rgb_HW3, _ = draw_slide(3, number=number, size=512, mpp=1.0)
    return rgb_HW3


def stain_of(image: np.ndarray, method: normalise.Method) -> normalise.Stain:
    pixels_P3 = image.reshape(-1, 3)
    stain = normalise.estimate(method, pixels_P3=pixels_P3, glass=normalise.scanned_glass(pixels_P3))
    assert stain is not None
    return stain


def tissue_colour(image: np.ndarray, *, tissue: np.ndarray) -> np.ndarray:
    return image[tissue].mean(axis=0)


def test_macenko_finds_the_stains_that_were_mixed() -> None:
    pixels_P3, amounts_P2 = mixture()
    stain = normalise.estimate("macenko", pixels_P3=pixels_P3, glass=(240.0,) * 3)
    assert isinstance(stain, Macenko)
    for direction, true_3 in ((stain.haematoxylin, HAEMATOXYLIN), (stain.eosin, EOSIN)):
        assert np.linalg.norm(direction) == pytest.approx(1)
        assert np.degrees(np.arccos(np.dot(direction, true_3))) < 1.5
    np.testing.assert_allclose(stain.strengths, np.percentile(amounts_P2, 99, axis=0), rtol=0.03)


def test_macenko_by_hand() -> None:
    """Haematoxylin as strong as 99 % of the slide is becomes the reference's: 246 exp(-1.9705 v) - 1."""
    stain = Macenko((240.0,) * 3, tuple(HAEMATOXYLIN), tuple(EOSIN), (1.3, 0.9))
    strong_3 = 241 * np.exp(-1.3 * HAEMATOXYLIN) - 1
    moved_P3 = normalise.normalise_pixels(strong_3[None], stain=stain, reference=REFERENCES["macenko"])
    np.testing.assert_allclose(moved_P3, [[80.2, 58.5, 109.5]], atol=0.1)


def test_ruderman_space_is_that_of_histomicstk() -> None:
    """Values of HistomicsTK 1.4.0, ``color_conversion.rgb_to_lab``."""
    colours_P3 = np.array([[200.0, 100.0, 150.0], [110.0, 70.0, 150.0]])
    golden_P3 = np.array(
        [
            [8.504857898988808, -0.07596869824415876, 0.08901877826459523],
            [7.992585171060989, -0.38591618716992176, 0.035726313768192096],
        ]
    )
    np.testing.assert_allclose(normalise.rgb_to_lab(colours_P3), golden_P3, atol=1e-9)
    np.testing.assert_allclose(normalise.lab_to_rgb(golden_P3), colours_P3, atol=1e-6)


def test_reinhard_gives_the_mean_and_deviation_of_the_reference() -> None:
    image = section(1)
    reference = REFERENCES["reinhard"]
    moved = StainNormaliser(stain_of(image, "reinhard"), reference)(image)
    stain = stain_of(moved, "reinhard")
    assert isinstance(stain, Reinhard)
    assert isinstance(reference, Reinhard)
    np.testing.assert_allclose(stain.mean, reference.mean, atol=0.08)
    np.testing.assert_allclose(stain.deviation, reference.deviation, rtol=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass(method: normalise.Method) -> None:
    image = section(2)
    stain = stain_of(image, method)
    glass_13 = np.array([stain.glass])
    moved_13 = normalise.normalise_pixels(glass_13, stain=stain, reference=REFERENCES[method])
    np.testing.assert_allclose(moved_13, GLASS, atol=1e-6)
    moved = StainNormaliser(stain, REFERENCES[method])(image)
    corner = (slice(0, 16), slice(0, 16))
    assert np.abs(moved[corner].mean(axis=(0, 1)) - GLASS).max() < 4


@pytest.mark.parametrize("method", METHODS)
def test_twice_is_once(method: normalise.Method) -> None:
    for number in (1, 2):
        image = section(number)
        once = StainNormaliser(stain_of(image, method), REFERENCES[method])(image)
        twice = StainNormaliser(stain_of(once, method), REFERENCES[method])(once)
        assert np.abs(once.astype(int) - image).mean() > 5
        assert np.abs(twice.astype(int) - once).mean() < 2.5


@pytest.mark.parametrize("method", METHODS)
def test_the_laboratory_is_taken_away_and_the_tissue_is_kept(method: normalise.Method) -> None:
    before, after = [], []
    for number in range(1, 5):
        image = section(number)
        tissue = image.min(axis=2) < 200
        moved = StainNormaliser(stain_of(image, method), REFERENCES[method])(image)
        before.append(tissue_colour(image, tissue=tissue))
        after.append(tissue_colour(moved, tissue=tissue))
        grey, grey_moved = image.mean(axis=2)[tissue], moved.mean(axis=2)[tissue]
        assert np.corrcoef(grey, grey_moved)[0, 1] > 0.95
    assert np.std(after, axis=0).mean() < 0.4 * np.std(before, axis=0).mean()


@pytest.mark.parametrize("method", METHODS)
def test_its_own_reference_changes_nothing(method: normalise.Method) -> None:
    image = section(1)
    stain = stain_of(image, method)
    colours_P3 = image.reshape(-1, 3)[::50].astype(float)
    moved_P3 = normalise.normalise_pixels(colours_P3, stain=stain, reference=stain)
    shift = np.abs(moved_P3 - colours_P3)
    assert shift.max() < 1e-6 if method == "macenko" else np.median(shift) < 4


@pytest.mark.parametrize("method", METHODS)
def test_the_table_is_the_formula(method: normalise.Method) -> None:
    image = section(1)
    stain = stain_of(image, method)
    by_table = StainNormaliser(stain, REFERENCES[method])(image[None])
    assert by_table.shape == (1, *image.shape)
    assert by_table.flags.writeable  # torch warns of others
    by_formula = normalise.normalise_pixels(image.reshape(-1, 3), stain=stain, reference=REFERENCES[method])
    error = np.abs(by_table.reshape(-1, 3) - by_formula)
    assert error.mean() < 0.5
    assert np.quantile(error, 0.999) < 2.5


def test_what_shows_no_two_stains_has_no_estimate() -> None:
    glass = (240.0,) * 3
    generator = numpy_generator(0, "test-blank")
    blank_P3 = generator.integers(235, 245, (20_000, 3)).astype(np.uint8)
    grey_P3 = generator.integers(30, 240, (20_000, 1)).astype(np.uint8).repeat(3, axis=1)
    few_P3, _ = mixture(n=MIN_PIXELS - 1)
    for method in METHODS:
        for pixels_P3 in (blank_P3, grey_P3, few_P3, np.empty((0, 3), np.uint8)):
            assert normalise.estimate(method, pixels_P3=pixels_P3, glass=glass) is None
    amounts_P1 = generator.uniform(0.5, 1.5, (20_000, 1))
    one_P3 = np.rint(241 * np.exp(-amounts_P1 * EOSIN) - 1).astype(np.uint8)
    assert normalise.estimate("macenko", pixels_P3=one_P3, glass=glass) is None


def test_glass_is_seen_beside_what_was_never_scanned() -> None:
    scanned = np.full((500, 3), (238, 236, 240), np.uint8)
    tissue = np.full((300, 3), (200, 120, 170), np.uint8)
    unscanned = np.full((400, 3), 255, np.uint8)
    assert normalise.scanned_glass(np.concatenate([tissue, unscanned, scanned])) == (238, 236, 240)
    assert normalise.scanned_glass(tissue) == (GLASS,) * 3
    assert normalise.scanned_glass(unscanned) == (GLASS,) * 3


def test_stains_survive_their_file(tmp_path) -> None:
    for method in METHODS:
        known = normalise.SlideStains(method, REFERENCES[method], {"a": stain_of(section(1), method), "blank": None})
        known.save(tmp_path)
        assert normalise.SlideStains.load(tmp_path) == known
        assert list(json.loads((tmp_path / "stain.json").read_text())) == ["method", "reference", "slides"]
