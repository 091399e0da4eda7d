"""Open slides: kept, closed and opened anew as they should be, by many threads, in bounded memory."""

from __future__ import annotations

import ctypes
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers.viewer import SlideCache, Zoom, tile_pixels

MIB = 2**20


@pytest.fixture
def slides(tmp_path, picture, pyramid):
    return [pyramid(tmp_path / f"{n}.tif", picture(300, 280, seed=n), mpp=0.5, levels=2) for n in range(4)]


def is_open(slide) -> bool:
    try:
        slide.pixels(0, 0, level=0, width=8, height=8)
    except (SlideError, ctypes.ArgumentError):
        return False
    return True


def test_a_slide_stays_open_between_uses(slides):
    kept = SlideCache()
    with kept.use(slides[0]) as first:
        pass
    with kept.use(slides[0]) as second:
        assert second is first
    kept.close()
    assert len(kept) == 0
    assert not is_open(first)


def test_the_longest_unused_is_closed_first(slides):
    kept = SlideCache(max_bytes=2 * MIB, cache_bytes=MIB)
    seen = {}
    for path in (slides[0], slides[1], slides[0], slides[2]):
        with kept.use(path) as seen[path]:
            assert kept.bytes <= 2 * MIB
    assert [is_open(seen[path]) for path in slides[:3]] == [True, False, True]
    kept.close()


def test_a_slide_in_use_is_never_closed(slides):
    kept = SlideCache(max_bytes=MIB, cache_bytes=MIB)
    with kept.use(slides[0]) as first:
        with kept.use(slides[1]) as second:
            kept.close()
            assert is_open(first)
            assert is_open(second)
        assert not is_open(second)
        assert is_open(first)
    assert not is_open(first)


def test_a_replaced_file_is_opened_anew(slides):
    kept = SlideCache()
    with kept.use(slides[0]) as old:
        before = old.pixels(0, 0, level=0, width=300, height=280)
        shutil.copyfile(slides[1], slides[0])
        os.utime(slides[0], ns=(1, 1))
        with kept.use(slides[0]) as new:
            assert (new.pixels(0, 0, level=0, width=300, height=280) != before).any()
            assert is_open(old)
    assert not is_open(old)
    kept.close()


def test_a_slide_that_is_gone_is_one_line(slides):
    kept = SlideCache()
    with kept.use(slides[0]):
        pass
    slides[0].unlink()
    with pytest.raises(SlideError, match="does not exist"), kept.use(slides[0]):
        pass
    kept.close()


def test_a_flat_image_counts_by_its_pixels(tmp_path, picture):
    Image.fromarray(picture(600, 600)).save(tmp_path / "a.png")
    kept = SlideCache(max_bytes=2 * MIB)
    with kept.use(tmp_path / "a.png"):
        assert kept.bytes == 600 * 600 * 4
    Image.fromarray(picture(800, 800)).save(tmp_path / "b.png")
    with pytest.raises(SlideError, match="pyramidal"), kept.use(tmp_path / "b.png"):
        pass
    kept.close()


@pytest.mark.parametrize("kind", ["openslide", "jpeg tiles", "tifffile", "flat"])
def test_threads_at_once_read_what_one_reads(tmp_path, picture, pyramid, kind):
    image, path = picture(1100, 900), tmp_path / "a.tif"
    if kind == "openslide":
        pyramid(path, image, mpp=0.5)
    elif kind == "jpeg tiles":
        tifffile.imwrite(path, image, tile=(64, 64), photometric="ycbcr", compression="jpeg", metadata=None)
    elif kind == "tifffile":
        tifffile.imwrite(path, image, rowsperstrip=40, compression="zlib", metadata=None)
    else:
        path = path.with_suffix(".png")
        Image.fromarray(image).save(path)
    zoom = Zoom(1100, 900)
    grids = {level: zoom.grid(level) for level in range(zoom.levels)}
    places = [(level, c, r) for level, (columns, rows) in grids.items() for c in range(columns) for r in range(rows)]
    # A cache of a few tiles, so that threads throw out what others have just decoded.
    kept = SlideCache(cache_bytes=4 * 64 * 64 * 3)

    def read(place):
        with kept.use(path) as slide:
            return tile_pixels(slide, zoom.tile(place[0], column=place[1], row=place[2]))

    alone = [read(place) for place in places]
    kept.close()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, places * 3))
    assert len(kept) == 1
    kept.close()
    for expected, actual in zip(alone * 3, together, strict=True):
        np.testing.assert_array_equal(actual, expected)
