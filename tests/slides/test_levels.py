"""Which images of a file are its levels; labels, macros, padded and turned images are no part of the slide."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers.levels import describes_aside, factors, is_aside
from histoloom.slides.readers.open import FlatSlide, open_slide
from histoloom.slides.readers.pyramid import PyramidSlide
from histoloom.slides.readers.tiff import TiffSlide

LABEL = (250, 230, 90)
TILED = {"tile": (64, 64), "photometric": "rgb", "metadata": None}


def reduced(image, factor):
    """An image made smaller, its sides rounded up."""
    return np.asarray(Image.fromarray(image).reduce(factor))


def write_levels(path, *images, **options):
    """A plain tiled TIFF; all images but the first are marked as reduced."""
    with tifffile.TiffWriter(path) as tiff:
        for number, image in enumerate(images):
            tiff.write(image, subfiletype=1 if number else 0, **(TILED | options))
    return path


@pytest.mark.parametrize(
    ("finer", "coarser", "expected"),
    [
        ((2000, 1500), (500, 375), 4),
        ((2001, 1501), (500, 376), 4),  # one side rounded down, the other up
        ((9271, 9923), (4636, 4961), 2),
        ((1000, 700), (333, 234), 3),
        ((2048, 1536), (768, 512), None),  # padded to whole tiles
        ((100_000, 80_000), (3328, 2560), None),  # the same, 4 % apart
        ((2048, 1536), (320, 300), None),
        ((2048, 1536), (2048, 400), None),
        ((2048, 1536), (2100, 1575), None),
    ],
)
def test_a_level_is_smaller_by_one_factor(finer, coarser, expected):
    limits = factors(finer, coarser)
    assert (limits is None) == (expected is None)
    assert limits is None or limits[0] < expected < limits[1]


def test_labels_are_named_in_whole_words():
    assert all(map(is_aside, ("label", "Label image", "slide_label", "MACRO", "overviews", "thumbnail (1)")))
    assert not any(map(is_aside, ("macrophages CD68", "immunolabelling", "unlabeled tissue", "Image 3", "")))
    assert describes_aside("Aperio Image Library v12\r\nlabel 415x422")
    assert not describes_aside("Aperio Image Library v12\r\n9000x8000 (256x256)|Title = label free|Macro = none")


@pytest.mark.parametrize("size", [(80, 75), (75, 56), (113, 84)], ids=["other proportions", "sixth", "quarter"])
@pytest.mark.parametrize("options", [{}, {"compression": "webp", "compressionargs": {"lossless": True}}], ids=str)
def test_a_label_in_tiles_is_no_level(tmp_path, picture, size, options):
    """Labels of the slide's own proportions are told by what they show."""
    image, label = picture(450, 336), np.full((size[1], size[0], 3), LABEL, np.uint8)
    path = write_levels(tmp_path / "a.tif", image, reduced(image, 2), label, **options)
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide if options else PyramidSlide)
        assert slide.levels == [(450, 336), (225, 168)]
        coarse = slide.read(60, 40, extent=256, size=64).astype(int)
        np.testing.assert_array_equal(slide.read(60, 40, extent=100, size=100), image[40:140, 60:160])
    expected = Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS, box=(60, 40, 316, 296))
    assert np.abs(coarse - np.asarray(expected)).mean() < 3


def test_a_label_that_its_description_names_is_no_level(tmp_path, picture):
    image, label = picture(512, 384), np.full((96, 128, 3), LABEL, np.uint8)
    head = "Aperio Image Library v12\r\n"
    texts = (f"{head}512x384 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5", f"{head}512x384 -> 256x192", f"{head}label")
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        for data, text in zip((image, reduced(image, 2), label), texts, strict=True):
            tiff.write(data, description=text, compression="jpeg", **TILED)
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.levels == [(512, 384), (256, 192)]


@pytest.mark.parametrize("compression", [None, "webp"])
def test_a_level_that_is_padded_to_whole_tiles_is_passed_over(tmp_path, picture, compression):
    image = picture(512, 384)
    padded = np.full((128, 192, 3), 255, np.uint8)
    padded[:96, :128] = reduced(image, 4)
    path = write_levels(tmp_path / "a.tif", image, reduced(image, 2), padded, compression=compression)
    with open_slide(path) as slide:
        assert slide.levels == [(512, 384), (256, 192)]


def test_a_level_of_any_factor_is_used_where_it_shows_the_slide(tmp_path, picture):
    image = picture(510, 390)
    with open_slide(write_levels(tmp_path / "a.tif", image, reduced(image, 3))) as slide:
        assert slide.levels == [(510, 390), (170, 130)]
    with open_slide(write_levels(tmp_path / "b.tif", image, np.roll(reduced(image, 3), 85, axis=1))) as slide:
        assert slide.levels == [(510, 390)]


def test_real_pyramids_keep_their_levels(real_data):
    with open_slide(real_data / "slides" / "her2-C2.tif") as slide:
        assert slide.levels == [(9270, 9936), (4635, 4968), (2317, 2484), (1158, 1242)]
    with open_slide(real_data / "slides" / "tcga-cr-7395.svs") as slide:
        assert slide.levels == [(4443, 3567), (2221, 1783)]


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "lzma", "zstd", "jpegxl"])
def test_tiles_that_openslide_cannot_decode_are_read(tmp_path, picture, compression):
    """With their levels, as OpenSlide reads others."""
    image = picture(256, 192)
    arguments = {} if compression in ("lzma", "zstd") else {"compressionargs": {"lossless": True}}
    if compression == "jpeg2000":
        arguments = {"compressionargs": {"reversible": True}}
    path = write_levels(tmp_path / "a.tif", image, reduced(image, 2), compression=compression, **arguments)
    with open_slide(path) as slide:
        assert slide.levels == [(256, 192), (128, 96)]
        np.testing.assert_array_equal(slide.read(37, 91, extent=64, size=64), image[91:155, 37:101])


@pytest.mark.parametrize("layout", [{"rowsperstrip": 48}, {"tile": (64, 64)}], ids=["strips", "tiles"])
@pytest.mark.parametrize("grey", [True, False], ids=["grey", "colour"])
def test_strips_and_grey_of_jpeg_xl_are_read(tmp_path, picture, grey, layout):
    image = picture(128, 100)[..., 1] if grey else picture(128, 100)
    options = {"photometric": "minisblack" if grey else "rgb", "compressionargs": {"lossless": True}}
    tifffile.imwrite(tmp_path / "a.tif", image, compression="jpegxl", metadata=None, **options, **layout)
    with open_slide(tmp_path / "a.tif") as slide:
        read = slide.pixels(0, 0, level=0, width=128, height=100)
    np.testing.assert_array_equal(read[..., 1], image if grey else image[..., 1])


def test_a_tile_of_jpeg_xl_that_claims_another_size_is_refused(tmp_path, picture):
    """4000 x 4000 px in a tile of 64 x 64."""
    large = imagecodecs.jpegxl_encode(np.zeros((4000, 4000, 3), np.uint8), effort=1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(64, 64), compression="jpegxl", **TILED)
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages[0].tags[code].valueoffset for code in (324, 325)]
    with path.open("r+b") as file:
        start = file.seek(0, 2)
        file.write(large)
        for place, value in zip(places, (start, len(large)), strict=True):
            file.seek(place)
            file.write(value.to_bytes(4, "little"))
    with open_slide(path) as slide, pytest.raises(SlideError, match="cannot be read"):
        slide.pixels(0, 0, level=0, width=64, height=64)


def test_a_padded_level_of_dicom_is_passed_over(tmp_path, picture, dicom_level):
    image = picture(256, 192)
    padded = np.full((128, 128, 3), 255, np.uint8)
    padded[:48, :64] = reduced(image, 4)
    for number, (level, mpp) in enumerate(((image, 0.5), (padded, 2.0))):
        dicom_level(tmp_path / f"{number}.dcm", level, series="1.2.3", instance=f"1.2.3.{number}", mpp=mpp)
    with open_slide(tmp_path / "0.dcm") as slide:
        assert (slide.levels, slide.mpp) == ([(256, 192)], 0.5)


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"tile": (64, 64), "compression": "jpeg"}, {}], ids=str)
def test_a_tiff_that_is_stored_turned_is_refused(tmp_path, picture, options):
    tags = [(274, 3, 1, 3, True)]
    tifffile.imwrite(tmp_path / "a.tif", picture(128, 96), photometric="rgb", extratags=tags, metadata=None, **options)
    with pytest.raises(SlideError, match=r"stored turned or mirrored \(TIFF orientation 3\); save it upright"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize(("name", "orientation"), [("a.jpg", 6), ("a.png", 6), ("a.webp", 3), ("a.png", 1)])
def test_a_flat_image_is_turned_upright(tmp_path, picture, name, orientation):
    image, exif = picture(120, 80), Image.Exif()
    exif[274] = orientation
    Image.fromarray(image).save(tmp_path / name, exif=exif, quality=95)
    expected = {1: image, 3: image[::-1, ::-1], 6: np.rot90(image, -1)}[orientation].astype(int)
    with open_slide(tmp_path / name) as slide:
        assert isinstance(slide, FlatSlide)
        assert slide.dimensions == expected.shape[1::-1]
        read = slide.pixels(0, 0, level=0, width=expected.shape[1], height=expected.shape[0])
    assert np.abs(read - expected).mean() < 4
