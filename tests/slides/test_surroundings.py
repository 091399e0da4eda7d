"""The fields about patches: where they lie, what their images show, and that a stopped stage writes them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histoloom.config import Config
from histoloom.run.stage import StageContext
from histoloom.slides import stage
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.patches.surroundings import fields_of, image_side
from histoloom.slides.readers.open import open_slide

EXTENT = 32.0


@pytest.fixture
def with_fields(
    slide_folder: Path, configured: Callable[..., Config], context: Callable[..., StageContext]
) -> Callable[..., StageContext]:
    """A stage ``patches`` that reads surroundings."""

    def make(name: str, **patches: object) -> StageContext:
        config = configured(slide_folder, patches=patches)
        clusters = config.clusters.model_copy(update={"surroundings": 0.5})
        job = context(config, name=name)
        return replace(job, config=config.model_copy(update={"clusters": clusters}))

    return make


def test_a_patch_lies_in_the_middle_of_its_field_or_the_field_at_the_edge() -> None:
    x_N, y_N = np.array([200, 0, 368]), np.array([100, 0, 268])
    fields_N3 = fields_of(x_N, y_N, extent=EXTENT, dimensions=(400, 300))
    np.testing.assert_allclose(fields_N3, [[152, 52, 128], [0, 0, 128], [272, 172, 128]])


def test_a_field_is_no_wider_than_its_slide() -> None:
    fields_N3 = fields_of(np.array([10, 60]), np.array([0, 20]), extent=EXTENT, dimensions=(100, 80))
    np.testing.assert_allclose(fields_N3, [[0, 0, 80], [20, 0, 80]])


def test_images_of_fields_are_as_wide_as_patches_up_to_a_limit() -> None:
    assert [image_side(size) for size in (16, 128, 256)] == [16, 128, 128]


def test_each_row_has_the_pixels_of_its_field(with_fields: Callable[..., StageContext]) -> None:
    job = with_fields("out")
    stage.run(job)
    patches = PatchSet.open(job.out)
    rows = np.array([59, 0, 30, 7])
    assert patches.surroundings_side == 16
    for row, image in zip(rows, patches.surroundings(rows), strict=True):
        at = patches.table.iloc[row]
        assert at["field_extent"] == 4 * EXTENT
        assert at["field_x"] <= at["x"]
        assert at["x"] + EXTENT <= at["field_x"] + at["field_extent"]
        with open_slide(Path(job.config.slides.paths[0]) / f"{at['slide_id']}.tif") as slide:
            expected = slide.read(at["field_x"], at["field_y"], extent=at["field_extent"], size=16)
        np.testing.assert_array_equal(image, expected)


def test_the_patches_are_the_same_with_and_without_fields(
    with_fields: Callable[..., StageContext],
    slide_folder: Path,
    configured: Callable[..., Config],
    context: Callable[..., StageContext],
) -> None:
    job, plain = with_fields("with"), context(configured(slide_folder), name="without")
    for one in (job, plain):
        stage.run(one)
    for file in (plain.out / "images").iterdir():
        assert (job.out / "images" / file.name).read_bytes() == file.read_bytes()
    assert not (plain.out / "surroundings").exists()
    assert "field_x" not in PatchSet.open(plain.out).table


@pytest.mark.parametrize("filters", [{}, {"filters": {"blur": 0.01}}])
def test_a_lost_file_of_fields_is_written_again(
    with_fields: Callable[..., StageContext], filters: dict[str, object]
) -> None:
    job = with_fields("out", **filters)
    stage.run(job)
    files = {path: path.read_bytes() for path in sorted(job.out.glob("*/*.npy"))}
    (job.out / "surroundings" / "b.npy").unlink()
    before = (job.out / "images" / "b.npy").stat().st_mtime_ns
    stage.run(job)
    assert {path: path.read_bytes() for path in sorted(job.out.glob("*/*.npy"))} == files
    assert (job.out / "images" / "b.npy").stat().st_mtime_ns == before
