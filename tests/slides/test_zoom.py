"""Tiles for a viewer: laid side by side they are the reader's own picture, at every level, to the last pixel."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.viewer import TILE, NoTile, Tile, Zoom, pixels_needed, tile_of_picture, tile_pixels


def stitched(slide: Slide, *, level: int) -> np.ndarray:
    zoom = Zoom(*slide.dimensions)
    columns, rows = zoom.grid(level)
    return np.concatenate(
        [
            np.concatenate(
                [tile_pixels(slide, zoom.tile(level, column=column, row=row)) for column in range(columns)], axis=1
            )
            for row in range(rows)
        ]
    )


def whole(slide: Slide, *, level: int) -> np.ndarray:
    width, height = Zoom(*slide.dimensions).size(level)
    return slide.region((0.0, 0.0, width * 2.0**level, height * 2.0**level), shape=(width, height))


@pytest.mark.parametrize(
    ("width", "height", "levels"), [(1, 1, 1), (256, 256, 1), (257, 3, 2), (1024, 1024, 3), (100_000, 80_000, 10)]
)
def test_levels_end_with_one_tile(width, height, levels):
    zoom = Zoom(width, height)
    assert zoom.levels == levels
    assert zoom.grid(levels - 1) == (1, 1)
    assert zoom.size(0) == (width, height)


@pytest.mark.parametrize(("width", "height"), [(1000, 517), (513, 256), (300, 2049)])
def test_tiles_cover_every_level_once(width, height):
    zoom = Zoom(width, height)
    for level in range(zoom.levels):
        columns, rows = zoom.grid(level)
        across = [zoom.tile(level, column=column, row=0) for column in range(columns)]
        down = [zoom.tile(level, column=0, row=row) for row in range(rows)]
        assert [tile.left for tile in across] == [TILE * n for n in range(columns)]
        assert all(tile.width == TILE for tile in across[:-1])
        assert sum(tile.width for tile in across) == zoom.size(level)[0]
        assert sum(tile.height for tile in down) == zoom.size(level)[1]
        assert across[-1].box[2] < width + 2**level


@pytest.mark.parametrize(
    ("level", "column", "row"),
    [(-1, 0, 0), (3, 0, 0), (10**30, 0, 0), (0, -1, 0), (0, 4, 0), (0, 0, 3), (2, 1, 0), (0, 10**30, -(10**30))],
)
def test_no_tile_outside(level, column, row):
    zoom = Zoom(1000, 700)
    with pytest.raises(NoTile) as caught:
        zoom.tile(level, column=column, row=row)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1024, 640), (768, 512)])
def test_tiles_of_a_pyramid_make_the_readers_own_picture(tmp_path, picture, pyramid, width, height):
    image = picture(width, height)
    with open_slide(pyramid(tmp_path / "a.tif", image, mpp=0.5)) as slide:
        np.testing.assert_array_equal(stitched(slide, level=0), image)
        for level in range(Zoom(width, height).levels):
            np.testing.assert_array_equal(stitched(slide, level=level), whole(slide, level=level))


def test_levels_that_are_not_stored_are_filtered_as_one_picture(tmp_path, picture):
    image = picture(1100, 700)
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        for level in range(4):
            np.testing.assert_array_equal(stitched(slide, level=level), whole(slide, level=level))


def test_a_level_of_rounded_size_is_shown_as_it_is_stored(tmp_path, picture):
    """Sizes that do not halve: OpenSlide would call the level's factor 2.004 and blend its pixels."""
    finest = picture(801, 535)
    coarse = np.asarray(Image.fromarray(finest).reduce(2))[:267, :400]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        options = {"photometric": "rgb", "compression": "jpeg", "tile": (64, 64), "metadata": None}
        tiff.write(finest, **options, compressionargs={"level": 95})
        tiff.write(coarse, **options, compressionargs={"level": 95}, subfiletype=1)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        written = tiff.pages[1].asarray()
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.whole_pixels
        seen = stitched(slide, level=1)
        assert seen.shape == (268, 401, 3)
        np.testing.assert_array_equal(seen[:267, :400], written)
        assert (seen[267:] == 255).all()


def test_what_a_tile_costs_is_told_before_it_is_read(tmp_path, picture, pyramid):
    with open_slide(pyramid(tmp_path / "a.tif", picture(1024, 1024), mpp=0.5, levels=1)) as slide:
        assert pixels_needed(slide, Zoom(1024, 1024).tile(2, column=0, row=0)) == 1024**2
        assert pixels_needed(slide, Zoom(1024, 1024).tile(0, column=1, row=1)) == TILE**2


def test_a_tile_of_a_picture_lies_where_the_slides_would(picture):
    image = picture(1000, 600)
    zoom = Zoom(4000, 2400)
    small = tile_of_picture(image, zoom.tile(2, column=1, row=2), dimensions=(4000, 2400))
    np.testing.assert_array_equal(small, image[512:600, 256:512])
    ragged = tile_of_picture(image, Tile(4, 0, 0, 251, 151), dimensions=(4001, 2401))
    assert ragged.shape == (151, 251, 3)


@pytest.mark.parametrize("name", ["her2-C1.tif", "CMU-1-Small-Region.svs", "tcga-cr-7395.svs"])
def test_tiles_of_real_slides_show_the_same_place_at_every_level(real_data, name):
    """A tile reduced by two is the quarter of the tile above it, more than one that is moved."""
    with open_slide(real_data / "slides" / name) as slide:
        zoom = Zoom(*slide.dimensions)
        for level in range(2):
            column, row = (count // 2 for count in zoom.grid(level + 1))
            above = tile_pixels(slide, zoom.tile(level + 1, column=column, row=row))
            fine = tile_pixels(slide, zoom.tile(level, column=2 * column, row=2 * row))
            halved = np.asarray(Image.fromarray(fine).reduce(2), dtype=float)
            off, shifted = (
                np.abs(seen[: halved.shape[0], : halved.shape[1]] - halved).mean()
                for seen in (above, np.roll(above, 2, axis=1))
            )
            assert off < 0.7 * shifted
