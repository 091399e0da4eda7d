"""What the stage keeps of each slide until the last one is done: little, however large its thumbnail is."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from histoloom import seeding
from histoloom.slides import stage
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.regions import Regions
from histoloom.slides.tissue.mask import PackedMask
from histoloom.slides.workers.workers import Workers


@pytest.mark.parametrize("shape_hw", [(1024, 1024), (37, 1021), (1, 1)])
def test_packed_masks_lose_nothing_and_take_at_most_a_bit_a_pixel(shape_hw: tuple[int, int]) -> None:
    noise_hw = seeding.numpy_generator(0, "noise").random(shape_hw)
    for mask_hw in (noise_hw > 0.5, noise_hw > 2, noise_hw < 2):
        packed = PackedMask.of(mask_hw)
        assert len(packed.data) <= mask_hw.size / 8 + 64  # noise cannot be compressed further
        assert packed.unpacked().dtype == np.bool_
        np.testing.assert_array_equal(packed.unpacked(), mask_hw)
    labels_hw = (noise_hw * 256).astype(np.uint8)
    regions = Regions(PackedMask.of(labels_hw), ("a",))
    np.testing.assert_array_equal(regions.labels.unpacked(), labels_hw)
    np.testing.assert_array_equal(regions.inside_hw, labels_hw > 0)


def test_a_mask_is_bool_and_labels_are_uint8() -> None:
    with pytest.raises(TypeError, match="these are int64"):
        PackedMask.of(np.zeros((4, 4), np.int64))


def test_the_stage_keeps_little_of_a_slide(slide_folder, configured, context, monkeypatch) -> None:
    """Jobs and results of all slides are in memory at once: without masks of a byte a pixel, and without spares."""
    kept: dict[str, list[int]] = {}
    run = Workers.run

    def measured(self, function, *, jobs, label):
        results = run(self, function, jobs=jobs, label=label)
        kept[label] = [len(pickle.dumps(pair)) for pair in zip(jobs, results, strict=True)]
        return results

    monkeypatch.setattr(Workers, "run", measured)
    job = context(configured(slide_folder, patches={"tissue": "detect", "count": 300}))
    stage.run(job)
    slides = PatchSet.open(job.out).slides[["width", "height", "patches"]].to_numpy()
    for label, bytes_of_a_patch in (("thumbnails", 0), ("patches", 48), ("overviews", 48)):
        for size, (width, height, patches) in zip(kept[label], slides.tolist(), strict=True):
            assert size < width * height / 8 / 2 + bytes_of_a_patch * patches + 3000, label
