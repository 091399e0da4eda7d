"""The fast way to JPEG tiles gives OpenSlide's own pixels, keeps its bound of memory, and leaves the rest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from histoloom import seeding
from histoloom.slides.entries import SlideError
from histoloom.slides.readers import pyramid
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.pyramid import JpegTiles, PyramidSlide


def write_jpeg_pyramid(path: Path, picture: np.ndarray, *, levels: int = 3, tile: int = 64) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            options: dict[str, Any] = {"subfiletype": 1}
            if level == 0:
                options = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
            options |= {"photometric": "ycbcr" if level % 2 == 0 else "rgb", "compression": "jpeg"}
            tiff.write(picture, tile=(tile, tile), metadata=None, compressionargs={"level": 85}, **options)
            picture = np.asarray(Image.fromarray(picture).reduce(2))
    return path


def by_openslide(path: Path, x: int, y: int, *, level: int, width: int, height: int) -> np.ndarray:
    with openslide.OpenSlide(str(path)) as slide:
        canvas = Image.new("RGB", (width, height), "white")
        region = slide.read_region((x, y), level, (width, height))
        canvas.paste(region, mask=region.getchannel("A"))
        return np.asarray(canvas)


def is_fast(path: Path, *, levels: list[tuple[int, int]] | None = None) -> bool:
    if levels is None:
        with openslide.OpenSlide(str(path)) as slide:
            levels = list(slide.level_dimensions)
    tiles = JpegTiles.open(path, levels=levels)
    if tiles is not None:
        tiles.close()
    return tiles is not None


@pytest.fixture
def jpeg_slide(tmp_path, picture) -> Path:
    return write_jpeg_pyramid(tmp_path / "a.tif", picture(512, 256))


def test_pixels_are_openslides_at_every_level(jpeg_slide):
    assert is_fast(jpeg_slide)
    rng = seeding.numpy_generator(0, "places")
    with open_slide(jpeg_slide) as slide:
        for level in range(3):
            for _ in range(10):
                x, y = (int(v) * 2**level for v in rng.integers((-40, -40), (512 >> level, 256 >> level)))
                place = {"level": level, "width": 90, "height": 70}
                np.testing.assert_array_equal(slide.pixels(x, y, **place), by_openslide(jpeg_slide, x, y, **place))


@pytest.mark.parametrize("name", ["her2-B1.tif", "CMU-1-Small-Region.svs"])
def test_pixels_of_real_slides_are_openslides(real_data, name):
    path = real_data / "slides" / name
    assert is_fast(path)
    with open_slide(path) as slide:
        width, height = slide.dimensions
        for x, y in ((-50, -20), (1003, 1207), (width - 300, height - 200)):
            place = {"level": 0, "width": 390, "height": 410}
            np.testing.assert_array_equal(slide.pixels(x, y, **place), by_openslide(path, x, y, **place))


def test_reads_agree_with_openslides_on_a_level_of_odd_size(real_data, monkeypatch):
    """OpenSlide blends level pixels where a corner falls between two; here they are whole: the same place, sharper."""
    path = real_data / "slides" / "her2-C1.tif"
    place: dict[str, Any] = {"x": 5001, "y": 5003, "extent": 512.0, "size": 64}
    with open_slide(path) as slide:
        fast = slide.read(**place).astype(float)
        moved = slide.read(**(place | {"x": 5009})).astype(float)
    monkeypatch.setattr("histoloom.slides.readers.pyramid.PLAIN_VENDORS", frozenset())
    with open_slide(path) as slide:
        slow = slide.read(**place).astype(float)
    assert np.abs(fast - slow).mean() < 2
    assert np.abs(fast - slow).mean() < np.abs(moved - slow).mean() / 5


def test_no_more_is_kept_than_the_bound(jpeg_slide):
    bound = 3 * 64 * 64 * 3
    with tifffile.TiffFile(jpeg_slide) as tiff:
        grid = pyramid._tile_grid(tiff.pages[:1], size=(512, 256), file_size=jpeg_slide.stat().st_size)
    assert grid is not None
    with jpeg_slide.open("rb") as file:
        reader = JpegTiles(file, grids=[grid], cache_bytes=bound)
        first = reader.read(0, 0, level=0, width=512, height=256)
        np.testing.assert_array_equal(reader.read(0, 0, level=0, width=512, height=256), first)
        assert sum(tile.nbytes for tile in reader._cache._tiles.values()) == reader._cache._bytes <= bound


def test_damaged_tiles_raise_reasons(jpeg_slide):
    with tifffile.TiffFile(jpeg_slide) as tiff:
        offset, length = tiff.pages[0].dataoffsets[9], tiff.pages[0].databytecounts[9]
    with jpeg_slide.open("rb+") as file:
        file.seek(offset)
        file.write(b"\xaa" * length)
    with open_slide(jpeg_slide) as slide:
        slide.read(0, 0, extent=50, size=50)
        with pytest.raises(SlideError, match="tile 9 is damaged"):
            slide.read(64, 64, extent=50, size=50)


def test_a_tile_that_claims_to_be_larger_is_refused(jpeg_slide):
    """The size inside a JPEG stream is the file's word: 65535 x 65535 would be 12 GB."""
    with tifffile.TiffFile(jpeg_slide) as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    data = bytearray(jpeg_slide.read_bytes())
    frame = data.index(b"\xff\xc0", offset)
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    jpeg_slide.write_bytes(data)
    with open_slide(jpeg_slide) as slide, pytest.raises(SlideError, match="tile 0 is damaged"):
        slide.read(0, 0, extent=50, size=50)


def test_what_is_out_of_the_ordinary_is_left_to_openslide(tmp_path, picture, pyramid, jpeg_slide):
    assert not is_fast(pyramid(tmp_path / "zlib.tif", picture(128, 128), mpp=0.5))
    assert not is_fast(jpeg_slide, levels=[(512, 256), (100, 100)])
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, picture(128, 128)[..., 0], tile=(64, 64), compression="jpeg")
    assert not is_fast(grey, levels=[(128, 128)])
    cut = tmp_path / "cut.tif"
    cut.write_bytes(jpeg_slide.read_bytes()[:-100])
    assert not is_fast(cut, levels=[(512, 256), (256, 128), (128, 64)])


def test_real_jpeg_2000_is_left_to_openslide(real_data):
    path = real_data / "slides" / "tcga-cr-7395.svs"
    assert not is_fast(path)
    with open_slide(path) as slide:
        assert isinstance(slide, PyramidSlide)
        assert slide.read(1000, 1000, extent=100, size=50).shape == (50, 50, 3)
