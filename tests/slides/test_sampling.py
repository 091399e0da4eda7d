"""Tissue and sampling: exact shares, fair allotments, positions at full resolution, splits without leaks."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom import seeding
from histoloom.config import PatchesConfig, SplitConfig
from histoloom.slides.patches.sampling import SlideGeometry, allocate, draw_positions, held_out, patch_extent
from histoloom.slides.tissue.mask import PackedMask, tissue_mask, tissue_share


def rng(name="test"):
    return seeding.numpy_generator(0, name)


def test_mask_finds_the_block_and_keeps_its_hole(picture):
    image = picture(200, 160)
    image[70:90, 90:110] = (243, 243, 245)
    image[5:7, 5:7] = (190, 90, 160)
    mask = tissue_mask(image)
    truth = np.zeros((160, 200), bool)
    truth[40:120, 50:150] = True
    truth[70:90, 90:110] = False
    assert (mask & truth).sum() / (mask | truth).sum() > 0.93
    assert not mask[75:85, 95:105].any()
    assert not mask[:20, :20].any() or mask[:20, :20].sum() < 40


@pytest.mark.parametrize("colour", [(255, 255, 255), (243, 240, 244), (0, 0, 0), (128, 128, 128)])
def test_blank_slides_have_no_tissue(colour):
    noise = rng().normal(scale=2, size=(128, 128, 3))
    flat = np.broadcast_to(np.array(colour, np.uint8), (128, 128, 3))
    assert not tissue_mask(flat).any()
    assert not tissue_mask((flat + noise).clip(0, 255).astype(np.uint8)).any()


def test_a_slide_full_of_tissue_keeps_its_pale_half():
    image = np.empty((128, 128, 3), np.uint8)
    image[:, :64] = (90, 30, 120)
    image[:, 64:] = (225, 170, 205)
    assert tissue_mask(image).mean() > 0.99


def test_specks_are_dropped():
    image = np.full((400, 400, 3), 245, np.uint8)
    image[100:102, 100:102] = (200, 60, 150)
    image[200:240, 200:240] = (200, 60, 150)
    mask = tissue_mask(image)
    assert not mask[:150, :150].any()
    assert mask[205:235, 205:235].all()


def test_tissue_share_is_the_area_weighted_mean():
    mask = rng().random((12, 10)) < 0.5
    fine = np.kron(mask, np.ones((8, 8)))  # the same mask on a slide of 80 x 96 px
    x, y = np.array([0, 3, 40, 61]), np.array([0, 50, 33, 77])
    got = tissue_share(mask, x=x, y=y, extent=19.0, width=80, height=96)
    expected = [fine[b : b + 19, a : a + 19].mean() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_allocation_is_proportional_and_complete():
    weights = np.array([5.0, 3.0, 2.0])
    np.testing.assert_array_equal(allocate(weights, total=100, capacity=np.full(3, 1000)), [50, 30, 20])
    np.testing.assert_array_equal(allocate(weights, total=11, capacity=np.full(3, 1000)), [6, 3, 2])


def test_allocation_gives_everyone_some_within_capacity():
    draws = rng()
    for _ in range(200):
        n = int(draws.integers(1, 9))
        weights = draws.exponential(size=n) ** 4 + 1e-9
        capacity = draws.integers(1, 60, size=n)
        total = int(draws.integers(1, 200))
        got = allocate(weights, total=total, capacity=capacity)
        assert got.sum() == min(total, capacity.sum())
        assert (got <= capacity).all()
        assert (got >= 1).all() or total < n


def test_no_weight_gets_nothing():
    got = allocate(np.array([0.0, 1.0]), total=10, capacity=np.array([99, 99]))
    np.testing.assert_array_equal(got, [0, 10])


def test_positions_lie_on_no_grid():
    """Seen modulo the pitch of a thumbnail (1024 px for 16384: 16), all residues occur alike."""
    geometry = SlideGeometry(16384, 16384, 372.09, PackedMask.of(np.ones((64, 64), bool)))
    for mode in ("all", "detect"):
        config = PatchesConfig(tissue=mode, background_share=0.0)
        drawn = draw_positions(4000, geometry=geometry, config=config, generator=rng())
        for axis in (drawn.x, drawn.y):
            counts = np.bincount(axis % 16, minlength=16)
            assert ((counts - 250) ** 2 / 250).sum() < 45  # chi-square of 15 degrees: 1 in 10,000
            assert axis.min() >= 0
            assert axis.max() + geometry.extent <= 16384


def test_positions_differ_and_fill_a_small_slide():
    geometry = SlideGeometry(20, 18, 16.0, PackedMask.of(np.zeros((9, 10), bool)))
    drawn = draw_positions(500, geometry=geometry, config=PatchesConfig(), generator=rng())
    assert len(drawn) == 5 * 3
    assert len(set(zip(drawn.x.tolist(), drawn.y.tolist(), strict=True))) == 15


def test_detect_keeps_to_tissue_and_its_background_share():
    tissue = np.zeros((100, 100), bool)
    tissue[:, :30] = True
    geometry = SlideGeometry(4000, 4000, 100.0, PackedMask.of(tissue))
    config = PatchesConfig(tissue="detect", min_tissue=0.7, background_share=0.2)
    drawn = draw_positions(300, geometry=geometry, config=config, generator=rng())
    assert len(drawn) == 300
    assert (drawn.tissue >= 0.7).sum() == 240
    assert (drawn.x[drawn.tissue >= 0.7] <= 1130).all()


def test_detect_finds_rare_tissue_and_fills_up_where_there_is_no_background():
    rare = np.zeros((500, 500), bool)
    rare[100:103, 200:203] = True
    config = PatchesConfig(tissue="detect", background_share=0.0)
    geometry = SlideGeometry(50_000, 50_000, 200.0, PackedMask.of(rare))
    positions = draw_positions(20, geometry=geometry, config=config, generator=rng())
    assert len(positions) == 20
    assert (positions.tissue >= 0.5).all()
    full = SlideGeometry(1000, 1000, 50.0, PackedMask.of(np.ones((50, 50), bool)))
    config = PatchesConfig(tissue="detect", background_share=0.3)
    assert len(draw_positions(40, geometry=full, config=config, generator=rng())) == 40


def test_extent():
    assert patch_extent(128, mpp=2.0, source_mpp=0.5) == 512


def test_split_holds_out_whole_groups_near_the_wanted_share():
    sizes = {f"p{i}": 100 for i in range(20)}
    for seed in range(5):
        held = held_out(list(sizes), counts=sizes, config=SplitConfig(holdout=0.15), seed=seed)
        assert len(held) == 3
    assert held_out(list(sizes), counts=sizes, config=SplitConfig(holdout=0.15), seed=1) == held_out(
        sorted(sizes, reverse=True), counts=sizes, config=SplitConfig(holdout=0.15), seed=1
    )


def test_split_always_leaves_training_and_something_held_out():
    for share in (0.01, 0.5, 0.99):
        held = held_out(["a", "b"], counts={"a": 90, "b": 10}, config=SplitConfig(holdout=share), seed=3)
        assert len(held) == 1
    assert held_out(["a"], counts={"a": 9}, config=SplitConfig(holdout=0.5), seed=0) == set()
    assert held_out(["a", "b"], counts={"a": 9, "b": 9}, config=SplitConfig(holdout=0), seed=0) == set()
