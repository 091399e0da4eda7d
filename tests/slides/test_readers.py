"""Readers: geometry and filters against references, scales, and every kind of damaged file."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.patches.grid import batches, grid
from histoloom.slides.readers import decoding
from histoloom.slides.readers.decoding import quiet
from histoloom.slides.readers.open import FlatSlide, open_slide
from histoloom.slides.readers.pyramid import PyramidSlide, scanned_origin
from histoloom.slides.readers.tiff import TiffSlide


def test_pyramid_reads_its_own_pixels(tmp_path, picture, pyramid):
    image = picture(256, 192)
    with open_slide(pyramid(tmp_path / "a.tif", image, mpp=0.5)) as slide:
        assert isinstance(slide, PyramidSlide)
        assert slide.dimensions == (256, 192)
        assert len(slide.levels) == 3
        np.testing.assert_array_equal(slide.read(37, 91, extent=64, size=64), image[91:155, 37:101])


@pytest.mark.parametrize("reader", [PyramidSlide, TiffSlide])
def test_a_refused_slide_is_closed(tmp_path, picture, pyramid, monkeypatch, reader):
    path = pyramid(tmp_path / "a.tif", picture(256, 192), mpp=0.5)
    monkeypatch.setattr(decoding, "MAX_PIECE_PIXELS", 100)
    with pytest.raises(SlideError) as raised:
        reader(path)
    # The traceback keeps the reader alive, so that nothing else can have closed its file.
    assert raised.tb is not None
    assert str(path) not in [file.path for file in psutil.Process().open_files()]


def test_mpp_from_resolution_tags(tmp_path, picture, pyramid):
    with open_slide(pyramid(tmp_path / "a.tif", picture(64, 64), mpp=0.43, levels=1)) as slide:
        assert slide.mpp == pytest.approx(0.43)
        assert slide.mpp_source == "openslide.mpp-x"


@pytest.mark.parametrize("dpi", [72, 300, 1200])
def test_print_resolution_is_not_a_scale(tmp_path, picture, dpi):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(64, 64), tile=(64, 64), resolution=(dpi, dpi), resolutionunit="INCH")
    with open_slide(path) as slide:
        assert slide.mpp is None


@pytest.mark.parametrize(("name", "kind"), [("a.tif", TiffSlide), ("a.png", FlatSlide)])
def test_flat_images_say_their_scale(tmp_path, picture, name, kind):
    Image.fromarray(picture(64, 48)).save(tmp_path / name, dpi=(25_400, 25_400))
    with open_slide(tmp_path / name) as slide:
        assert isinstance(slide, kind)
        assert slide.mpp == pytest.approx(1.0, rel=1e-4)


def test_ome_metadata_gives_the_scale(tmp_path, picture):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, picture(64, 48), metadata={"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm"})
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert slide.mpp_source == "OME-XML"


def test_an_entry_overrides_the_scale_of_its_file(tmp_path, picture, pyramid):
    for name, own in (("a.tif", None), ("b.tif", 0.5)):
        path = pyramid(tmp_path / name, picture(64, 64), mpp=own)
        with open_slide(path) as slide:
            assert slide.mpp == (own if own is None else pytest.approx(own))
        entry = SlideEntry("a", path, patient="p", slide="a", mpp=0.3, mpp_source="table")
        with open_slide(entry) as slide:
            assert (slide.mpp, slide.mpp_source) == (0.3, "table")


@pytest.mark.parametrize("flat", [True, False])
def test_patches_are_cut_from_one_resampled_slide(tmp_path, picture, pyramid, flat):
    """A patch is what the same place of the whole slide, resampled at once, shows: no seams at its borders."""
    image = picture(256, 256)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    path = path if flat else pyramid(tmp_path / "a.tif", image, mpp=0.5, levels=1)
    whole = np.asarray(Image.fromarray(image).resize((85, 85), Image.Resampling.LANCZOS, box=(0, 0, 255, 255)))
    with open_slide(path) as slide:
        for x, y in ((0, 0), (96, 30), (159, 159)):
            patch = slide.read(x, y, extent=96, size=32).astype(int)
            expected = whole[y // 3 : y // 3 + 32, x // 3 : x // 3 + 32].astype(int)
            assert np.abs(patch - expected).max() <= (1 if x + 96 < 255 else 40)
            assert np.abs(patch - expected)[:-2, :-2].max() <= 1


def test_pyramid_levels_show_the_same_place(tmp_path, picture, pyramid):
    image = picture(512, 512)
    with open_slide(pyramid(tmp_path / "a.tif", image, mpp=0.5)) as slide:
        patch = slide.read(101, 150, extent=256, size=64).astype(float)
    reference = Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS, box=(101, 150, 357, 406))
    error = np.abs(patch - np.asarray(reference)).mean()
    moved = np.abs(np.roll(patch, 1, axis=1) - np.asarray(reference)).mean()
    assert error < 3
    assert error < moved / 3


@pytest.mark.parametrize("levels", [1, 3])
def test_no_aliasing(tmp_path, pyramid, levels):
    """Stripes finer than the wanted pixel become even grey; picking pixels would leave stripes or one colour."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    with open_slide(pyramid(tmp_path / "a.tif", stripes, mpp=0.5, levels=levels)) as slide:
        patch = slide.read(40, 40, extent=150, size=50)
    assert np.abs(patch.astype(float) - 127.5).max() < 8


def test_outside_is_white(tmp_path, pyramid):
    black = np.zeros((96, 96, 3), np.uint8)
    Image.fromarray(black).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", pyramid(tmp_path / "a.tif", black, mpp=0.5, levels=1)):
        with open_slide(path) as slide:
            patch = slide.read(64, 64, extent=64, size=64)
        assert (patch[:30, :30] == 0).all()
        assert (patch[34:] == 255).all()


def test_edges_are_free_of_white(tmp_path, pyramid):
    black = np.zeros((100, 100, 3), np.uint8)
    with open_slide(pyramid(tmp_path / "a.tif", black, mpp=0.5, levels=1)) as slide:
        assert slide.read(0, 0, extent=100, size=25).max() == 0


def test_alpha_and_grey_become_rgb_on_white(tmp_path):
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((16, 16), 77, np.uint8)).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "deep.tif", np.full((16, 16, 3), 77 * 256, np.uint16), photometric="rgb")
    values = {"clear.png": 255, "grey.png": 77, "deep.tif": 77}
    for name, value in values.items():
        with open_slide(tmp_path / name) as slide:
            assert (slide.read(0, 0, extent=16, size=16) == value).all()


def test_thumbnail_is_the_slide_made_small(tmp_path, picture, pyramid, monkeypatch):
    image = picture(300, 200)
    monkeypatch.setattr("histoloom.slides.readers.base._BLOCK_SIDE", 70)
    with open_slide(pyramid(tmp_path / "a.tif", image, mpp=0.5, levels=1)) as slide:
        small = slide.thumbnail(90)
    reference = np.asarray(Image.fromarray(image).resize((90, 60), Image.Resampling.LANCZOS))
    assert small.shape == (60, 90, 3)
    assert np.abs(small.astype(int) - reference).max() <= 2


@pytest.mark.parametrize("name", ["a.svs", "a.tif", "a.png", "a.jpg"])
def test_text_is_no_slide(tmp_path, name):
    (tmp_path / name).write_text("not a slide\n" * 50, encoding="utf-8")
    with pytest.raises(SlideError, match="is not a slide or image"):
        open_slide(tmp_path / name)


def test_truncated_files_raise_reasons(tmp_path, picture, pyramid):
    Image.fromarray(picture(256, 256)).save(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", pyramid(tmp_path / "a.tif", picture(256, 256), mpp=0.5)):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(SlideError, match=r"^cannot be read: .+"), open_slide(path) as slide:
            slide.read(0, 0, extent=256, size=32)


def test_spoiled_tiles_raise_reasons(tmp_path, picture, pyramid, spoiled):
    path = spoiled(pyramid(tmp_path / "a.tif", picture(256, 256), mpp=0.5))
    with open_slide(path) as slide, pytest.raises(SlideError, match="cannot be read"):
        slide.read(128, 128, extent=64, size=64)


def test_bombs_are_refused(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("histoloom.slides.readers.decoding.MAX_PIECE_PIXELS", 200)
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", picture(64, 64), compression="zlib", rowsperstrip=64)
    for name in ("a.png", "a.tif"):
        with pytest.raises(SlideError, match="too large to decode in one piece"):
            open_slide(tmp_path / name)


def test_stacks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((7, 32, 32), np.uint8), photometric="minisblack")
    with pytest.raises(SlideError, match="not a grey or RGB image"):
        open_slide(tmp_path / "a.tif")


def test_channels_of_fluorescence_are_no_colours(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 32, 32), np.uint8), metadata={"axes": "CYX"})
    with pytest.raises(SlideError, match="4 channels, as of fluorescence"):
        open_slide(tmp_path / "a.ome.tif")


def test_grid_covers_the_slide_up_to_its_limit(tmp_path, picture, pyramid):
    with open_slide(pyramid(tmp_path / "a.tif", picture(250, 130), mpp=0.5)) as slide:
        cells = grid(slide, size=16, mpp=1.0, limit=1000)
        assert (cells.columns, cells.rows, cells.extent) == (8, 5, 32.0)
        covered = np.zeros((130, 250), bool)
        for x, y in zip(cells.x, cells.y, strict=True):
            covered[int(np.floor(y)) : int(np.ceil(y + 32)), int(np.floor(x)) : int(np.ceil(x + 32))] = True
        assert covered.all()
        assert (cells.x + 32 <= 250).all()
        assert (cells.y + 32 <= 130).all()
        few = grid(slide, size=16, mpp=1.0, limit=12)
        assert 6 <= len(few) <= 12
        assert np.ptp(np.diff(few.x[: few.columns])) < 40
        parts = list(batches(slide, cells=few, size=16, batch=5))
        assert sum(map(len, parts)) == len(few)
        np.testing.assert_array_equal(parts[0][1], slide.read(few.x[1], few.y[1], extent=32.0, size=16))


def test_grid_refuses_a_slide_smaller_than_a_patch(tmp_path, picture, pyramid):
    path = pyramid(tmp_path / "a.tif", picture(64, 64), mpp=0.5)
    with open_slide(path) as slide, pytest.raises(SlideError, match="32 x 32 um, needs 64 um"):
        grid(slide, size=64, mpp=1.0, limit=10)


def test_real_aperio_slide(real_data):
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.dimensions == (2220, 2967)
        assert slide.mpp == 0.499
        patch = slide.read(800, 1500, extent=513.026, size=128)
        reference = Image.fromarray(slide.pixels(800, 1500, level=0, width=513, height=513))
    small = np.asarray(reference.resize((128, 128), Image.Resampling.BOX)).astype(float)
    assert np.abs(patch - small).mean() < 8
    assert np.corrcoef(patch.ravel(), small.ravel())[0, 1] > 0.97


def test_the_scanned_part_begins_where_openslide_says():
    assert scanned_origin({"openslide.bounds-x": "1536", "openslide.bounds-y": "40"}) == (1536, 40)
    assert scanned_origin({}) == (0, 0)


def test_overlapping_threads_leave_log_and_warnings_as_they_were():
    """One thread enters first and leaves first: saved and restored by each, the logger would stay disabled."""
    logger, filters = tifffile.logger(), list(warnings.filters)
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()
    inside = []

    def first():
        with quiet:
            first_is_in.set()
            second_is_in.wait(10)
        inside.append(logger.disabled)  # the second thread still decodes
        first_is_out.set()

    def second():
        first_is_in.wait(10)
        with quiet:
            second_is_in.set()
            first_is_out.wait(10)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [True]
    assert not logger.disabled
    assert warnings.filters == filters


def test_many_threads_leave_the_log_as_it_was():
    def work():
        for _ in range(200):
            with quiet:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not tifffile.logger().disabled
