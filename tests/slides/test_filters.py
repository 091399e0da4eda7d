"""Filters: what is rejected is counted and replaced by the next candidate of its kind."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from histoloom import seeding
from histoloom.config import PatchesConfig
from histoloom.slides.patches.extract import accept, compacting_moves
from histoloom.slides.patches.filters import Filters, sharpness
from histoloom.slides.patches.sampling import CandidatePatches, Positions
from histoloom.slides.procedural.slides import draw_slide
from histoloom.slides.readers.open import open_slide


def candidates(*, tissue=None, pen=None, background, wanted):
    n = len(background)
    nothing = np.zeros(n)
    positions = Positions(nothing, nothing, np.ones(n) if tissue is None else tissue, nothing if pen is None else pen)
    return CandidatePatches(positions, np.asarray(background), wanted)


class Rejecting(Filters):
    """Rejects the patches that carry a 1, as blurred."""

    def rejection(self, patch_HW3):
        return "blur" if patch_HW3.any() else None


def accepted_of(bad, *, background, wanted, pen=None):
    kept: dict[int, np.ndarray] = {}
    order = []

    def read(row):
        order.append(row)
        return np.full((1, 1, 3), bad[row])

    accepted = accept(
        candidates(pen=pen, background=background, wanted=wanted),
        filters=Rejecting(blur=1.0, pen=0.5),
        read=read,
        keep=lambda slot, patch: kept.__setitem__(slot, patch),
        reading_order=lambda rows: rows[::-1],
    )
    assert len(set(order)) == len(order), "no candidate is read twice"
    return accepted, kept


def test_without_rejections_the_first_are_taken_in_their_order():
    accepted, kept = accepted_of([0] * 9, background=[False] * 9, wanted=5)
    assert accepted.rows == [0, 1, 2, 3, 4]
    assert sorted(kept) == accepted.rows
    assert accepted.rejected == {"blur": 0, "pen": 0}


def test_a_random_lot_is_filled_up_and_counted():
    rng = seeding.numpy_generator(0, "choice")
    for _ in range(50):
        n, wanted = int(rng.integers(1, 60)), int(rng.integers(1, 30))
        bad, background = rng.random(n) < 0.4, rng.random(n) < 0.3
        pen = np.where(rng.random(n) < 0.2, 0.9, 0.1)
        accepted, kept = accepted_of(bad.astype(int), background=background, wanted=wanted, pen=pen)
        full = [row for row in accepted.rows if row >= 0]
        good = ~bad & (pen < 0.5)
        assert good[full].all()
        assert len(set(full)) == len(full) == len(kept)
        first = np.arange(min(wanted, n))
        if len(full) == len(first):
            assert background[full].sum() <= background[first].sum()
        else:
            assert good[~background].sum() == (~background[full]).sum(), "every good place with tissue was used"
        slots = list(accepted.rows)
        for source, target in compacting_moves(slots):
            slots[target], slots[source] = slots[source], -1
        assert sorted(slots[: len(full)]) == sorted(full)
        assert set(slots[len(full) :]) <= {-1}


def test_background_is_replaced_by_background_while_there_is_some():
    background = [True, False, False, True, True, False]
    accepted, _ = accepted_of([1, 0, 0, 1, 0, 0], background=background, wanted=3)
    assert accepted.rows == [4, 1, 2]
    assert accepted.rejected == {"blur": 2, "pen": 0}


def test_what_lies_under_pen_is_not_read():
    accepted, _ = accepted_of([1, 0, 0], background=[False] * 3, wanted=1, pen=np.array([0.9, 0.9, 0.0]))
    assert accepted.rows == [2]
    assert accepted.rejected == {"blur": 0, "pen": 2}


def test_focus_is_measured_on_tissue_alone():
    flat = np.full((16, 16, 3), (200, 120, 170), np.uint8)
    lot = candidates(tissue=np.array([0.1, 0.9]), background=np.zeros(2, bool), wanted=2)
    filters = Filters(blur=0.01, pen=None)
    accepted = accept(lot, filters=filters, read=lambda _: flat, keep=lambda *_: None, reading_order=np.asarray)
    assert accepted.rows == [0, -1]
    assert accepted.rejected == {"blur": 1, "pen": 0}


@pytest.fixture(scope="module")
def tissue_patches(real_data):
    """Patches of 128 px at 1 um/px from the middle of real tissue, sharp."""
    fields = sorted((real_data / "tiles" / "osteosarcoma").glob("*.jpg"))[::7]
    patches = []
    for path in fields:
        with open_slide(path) as slide:
            patches += [slide.read(x, 448, extent=128, size=128) for x in (200, 448, 700)]
    slides = (("CMU-1-Small-Region.svs", 0.499, (700, 1500)), ("her2-C2.tif", 0.688, (4500, 4000)))
    for name, mpp, (x, y) in slides:
        with open_slide(real_data / "slides" / name) as slide:
            patches += [slide.read(x, y + step, extent=128 / mpp, size=128) for step in (0, 300)]
    return patches


def test_the_default_tells_sharp_tissue_from_blurred(tissue_patches):
    """A blur of 3 px hides nuclei; one of 0.5 px is what scanners do."""
    least = PatchesConfig(tissue="detect").min_sharpness
    assert least is not None
    sharp = [sharpness(patch) for patch in tissue_patches]
    blurred = [sharpness(ndimage.gaussian_filter(patch, (3, 3, 0))) for patch in tissue_patches]
    measured = [(a, b) for a, b in zip(sharp, blurred, strict=True) if a is not None and b is not None]
    assert len(measured) > 0.7 * len(tissue_patches)
    assert all(before > least for before, _ in measured)
    assert np.mean([after < least for _, after in measured]) > 0.9


def test_sharpness_does_not_depend_on_stain_size_or_enlargement(tissue_patches):
    for patch in tissue_patches[:3]:
        pale = (255 * (patch / 255) ** 0.6).round().astype(np.uint8)
        assert sharpness(pale) == pytest.approx(sharpness(patch), rel=0.6)
    slide, _ = draw_slide(0, number=1, size=1024, mpp=1.0)
    assert sharpness(slide[300:556, 300:556]) == pytest.approx(sharpness(slide[300:684, 300:684]), rel=0.5)
    patch = tissue_patches[0]
    enlarged = np.asarray(Image.fromarray(patch).resize((384, 384), Image.Resampling.LANCZOS))
    before, after = sharpness(patch), sharpness(enlarged)
    assert before is not None
    assert after is not None
    assert after < 0.1 * before
    assert sharpness(enlarged, enlarged=3.0) == pytest.approx(before, rel=0.35)


def test_glass_is_not_judged():
    noise = seeding.numpy_generator(0, "glass").normal(243, 1.5, (64, 64, 3))
    assert sharpness(noise.round().astype(np.uint8)) is None
    assert sharpness(np.zeros((16, 16, 3), np.uint8)) is None
    assert Filters(blur=0.5, pen=None).rejection(np.full((16, 16, 3), 240, np.uint8)) is None
